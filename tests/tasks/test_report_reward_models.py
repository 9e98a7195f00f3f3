"""The report on reward models: checks over the iterations, the gate's reasons, over-optimisation and its alarm."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from graded_rollouts import rollout_rows
from matplotlib.figure import Figure
from synthetic_raters import fit_heads, preference_rows, world

from storage.artifacts import Artifact, Outputs
from storage.commits import Attempt, Recipe, commit_outputs
from storage.fingerprints import digest
from storage.records import RECORDS
from tasks.report.config import ReportConfig
from tasks.report.gather import gather
from tasks.report.page import render
from tasks.report.reward_model_images import draw_checks, draw_overoptimisation
from tasks.report.stage import watch_metrics
from tasks.reward_check.check import check_pairs
from tasks.reward_check.config import CheckedEnsemble, RewardCheckConfig
from tasks.reward_check.held_out import held_out

A, B, ITERATIONS = 0.8, 0.5, 9
DISTANCES = np.linspace(0.0, 4.0, ITERATIONS)
GRADERS = {"graders": [{"grader": "verifier", "name": None}, {"grader": "reward_model", "name": "preferred"}]}
HOSTILE = "gap </script><script>alert(1)</script>"


def commit(folder: Path, iteration: int, step: str, outputs: Outputs, config=None, inputs=None) -> Artifact:
    made = Artifact(
        root=str(folder / "root"), stage=step.removesuffix("-candidate"), fingerprint=digest([step, iteration])
    )
    recipe = Recipe(made, step, 1, config or {}, inputs or {}, 0, "nightly", iteration, "mlflow")
    commit_outputs(recipe, Attempt(datetime.now(UTC), folder), outputs)
    return made


def gold(distance: float) -> float:
    """Gao et al.'s curve of RL, above 0.3 of the first policy."""
    return 0.3 + distance * (A - B * np.log(distance)) if distance else 0.3


def checked() -> Outputs:
    given, heads = world(300, seed=1), fit_heads(world(200, seed=0), 3)
    ordered = given.chosen_first(given.features) @ heads
    domains = {f"q{index:05d}": "maths" for index in range(150)}
    pairs = held_out(
        preference_rows(given),
        ordered[:, 0],
        ordered[:, 1],
        given.chosen_first(given.length),
        CheckedEnsemble(),
        domains,
    )
    found = check_pairs(pairs, RewardCheckConfig(), seed=0)
    return Outputs(metrics=found.metrics, gap=found.gap, checked_pairs=found.checked_pairs)


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """Nine nights with one reward model, before them one with another; KL is measured by each update."""
    folder = tmp_path_factory.mktemp("reward_models")
    check = checked()
    made = {"00000.evaluation": commit(folder, 0, "evaluation", Outputs(metrics={"mean_score": 0.3}))}
    for k in range(1, ITERATIONS + 1):
        wobble = 0.01 * (-1) ** k
        model = "reward_model/old" if k == 1 else "reward_model/new"
        steps = {
            "rollouts": commit(
                folder,
                k,
                "rollouts",
                Outputs(metrics={"length_mean": 20.0}, rollouts=rollout_rows([("p0", "pond")], prefix=f"n{k}-")),
            ),
            "grading": commit(
                folder,
                k,
                "grading",
                Outputs(
                    metrics={
                        "reward_mean": 0.4,
                        "score/preferred_mean": 0.3 + 0.05 * k + wobble,
                        "score/people_mean": 0.9,
                    }
                ),
                GRADERS,
                {"reward_model": model},
            ),
            "policy_update": commit(
                folder,
                k,
                "policy_update",
                Outputs(metrics={"kl_reference": DISTANCES[k - 1] ** 2 / 20}),
                {"kl": {"reference": "first"}},
            ),
            "evaluation": commit(
                folder, k, "evaluation", Outputs(metrics={"mean_score": float(gold(DISTANCES[k - 1])) + wobble / 5})
            ),
        }
        if k % 4 == 1:
            steps["reward_check"] = commit(folder, k, "reward_check", check, inputs={"reward_model": model})
        made |= {f"{k:05d}.{step}": each for step, each in steps.items()}
    candidate = commit(folder, 9, "reward_check-candidate", check, inputs={"reward_model": "reward_model/candidate"})
    return made | {"00009.reward_check-candidate": candidate}


@pytest.fixture(scope="module")
def content(history):
    return gather(history, ReportConfig())


def test_checks_in_their_order(content):
    found = [(row["iteration"], row["candidate"], row["model"]) for row in content.honesty.checks]
    assert found == [
        (1, False, "reward_model/old"),
        (5, False, "reward_model/new"),
        (9, True, "reward_model/candidate"),
        (9, False, "reward_model/new"),
    ]
    assert content.honesty.checked == "reward_model/new"


def test_the_watch_has_the_policies_that_the_newest_reward_model_graded(content):
    """The policy of iteration k made the rollouts of k + 1; the night that the old one graded doesn't count."""
    watched = content.honesty.watched
    assert [row["iteration"] for row in watched.rows] == list(range(1, ITERATIONS))
    kl = [row["kl"] for row in watched.rows]
    np.testing.assert_allclose(np.sqrt(kl), DISTANCES[: ITERATIONS - 1])
    assert watched.rows[0]["proxy"] == pytest.approx(0.4 + 0.01)


def test_the_turning_point_and_the_alarm(content):
    watched = content.honesty.watched
    expected = np.exp(A / B - 1)
    assert watched.turning.low <= expected <= watched.turning.high
    assert watched.turning.distance == pytest.approx(expected, rel=0.05) and watched.turning.reached
    assert watched.alarm.raised
    assert watch_metrics(watched) == {"overoptimisation_alarm": 1.0, "turning_point": watched.turning.distance}


def test_a_grader_may_stand_for_people(history):
    watched = gather(history, ReportConfig(gold="people")).honesty.watched
    assert watched.gold == "people" and {row["gold"] for row in watched.rows} == {0.9}
    assert not watched.alarm.raised
    assert gather(history, ReportConfig(gold="nobody")).honesty.watched is None


def test_the_page(content):
    verdict = {
        "iteration": 9,
        "candidate": "reward_model/candidate",
        "incumbent": "reward_model/new",
        "promoted": False,
        "why": HOSTILE,
        "criteria": [
            {"name": "gap", "candidate": 0.31, "incumbent": None, "limit": 0.2, "passed": False, "why": HOSTILE},
        ],
    }
    page = render(replace(content, honesty=replace(content.honesty, verdicts=[verdict])))
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])
    assert {
        "reward-accuracy",
        "reward-gap",
        "reward-length",
        "reward-calibration",
        "reward-uncertainty",
        "over-optimisation",
    } <= set(figures)
    assert "reward-model" not in figures
    text = re.sub(r"<[^>]+>", " ", page)
    assert "Over-optimisation:" in text and "ALARM" in text and "domain: maths" in text
    assert re.search(r"stays out;\s+new\s+stays, because", text)
    assert HOSTILE not in page and "alert(1)&lt;/script&gt;" in page


def test_a_campaign_without_any_of_it_has_no_section(history):
    bare = {key: each for key, each in history.items() if "reward_check" not in key}
    bare = {key: each for key, each in bare.items() if not key.endswith("grading")}
    content = gather(bare, ReportConfig())
    assert content.honesty.watched is None and content.honesty.checks == []
    assert "<h2>Reward model</h2>" not in render(content)


def test_the_gate_s_reasons_are_gathered(history, tmp_path):
    schema = RECORDS["gate"].create_empty().schema
    rows = [
        {
            "name": "anchors",
            "position": 1,
            "candidate": None,
            "incumbent": None,
            "limit": None,
            "passed": True,
            "why": "none",
        },
        {
            "name": "gap",
            "position": 0,
            "candidate": 0.4,
            "incumbent": 0.2,
            "limit": 0.22,
            "passed": False,
            "why": "0.4 after 0.2",
        },
    ]
    gate = commit(
        tmp_path,
        5,
        "reward_gate",
        Outputs(metrics={"promoted": 0.0}, facts={"why": "gap: 0.4 after 0.2"}, gate=pl.DataFrame(rows, schema=schema)),
        inputs={"candidate": "reward_model/candidate", "incumbent": "reward_model/new"},
    )
    [verdict] = gather({**history, "00005.reward_gate": gate}, ReportConfig()).honesty.verdicts
    assert [row["name"] for row in verdict["criteria"]] == ["gap", "anchors"]
    assert not verdict["promoted"] and verdict["why"] == "gap: 0.4 after 0.2"


@pytest.mark.parametrize("promoted", [0.0, 1.0])
def test_a_first_one_that_was_refused_was_never_in_charge(history, tmp_path, promoted):
    """Its check is no candidate's by its step, as nothing was there to be checked beside it."""
    gate = commit(
        tmp_path,
        1,
        "reward_gate",
        Outputs(metrics={"promoted": promoted}, facts={"why": "accuracy"}, gate=RECORDS["gate"].create_empty()),
        inputs={"candidate": "reward_model/old"},
    )
    checks = gather({**history, "00001.reward_gate": gate}, ReportConfig()).honesty.checks
    assert [(row["iteration"], row["candidate"]) for row in checks[:2]] == [(1, not promoted), (5, False)]


def test_images(content):
    drawn = Figure(), Figure()
    assert draw_checks(drawn[0], content.honesty) and draw_overoptimisation(drawn[1], content.honesty)
    assert len(drawn[0].axes) == 4 and len(drawn[1].axes[0].lines) == 2
    bare = replace(content.honesty, checks=[], watched=None)
    assert not draw_checks(Figure(), bare) and not draw_overoptimisation(Figure(), bare)
