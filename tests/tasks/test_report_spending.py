"""The report on where generation went: funnel, difficulty, groups, tokens, the reward curve and the advice."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from graded_rollouts import context, rollout_rows

from storage.artifacts import Artifact, Outputs
from storage.commits import Attempt, Recipe, commit_outputs
from storage.fingerprints import digest
from tasks._maths.reward_curve import RewardCurve, fit_curve
from tasks.report.advice import Evidence, advise
from tasks.report.config import ReportConfig
from tasks.report.gather import curve_points, gather
from tasks.report.page import render
from tasks.report.spending import iteration_spending, prompt_rates
from tasks.report.stage import report

CURVE = RewardCurve(start=0.2, asymptote=0.6, middle=40.0, exponent=1.5)
ITERATIONS, SAMPLES = 9, 4
# Passes of each prompt's four rollouts.
PASSES = (0, 0, 1, 2, 4)
RULES = {"no_variance": 12, "truncated": 1, "incomplete": 2, "kept": 5}


def commit(folder: Path, iteration: int, step: str, outputs: Outputs, config: dict | None = None) -> Artifact:
    made = Artifact(
        root=str(folder / "root"), stage=re.sub(r"-\d+(-rest)?$", "", step), fingerprint=digest([step, iteration])
    )
    recipe = Recipe(made, step, 1, config or {}, {}, 0, "nightly", iteration, "mlflow")
    commit_outputs(recipe, Attempt(datetime.now(UTC), folder), outputs)
    return made


def graded(prefix: str, passes: list[int], verdicts: bool = True) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rollouts and rewards of prompts with that many passes of four."""
    made = rollout_rows(
        [(f"p{group}", f"{index}") for group in range(len(passes)) for index in range(SAMPLES)], prefix=prefix
    )
    good = [index < count for count in passes for index in range(SAMPLES)]
    rows = [
        {
            "rollout_id": rollout_id,
            "reward": float(each),
            "components": [{"name": "a", "value": float(each)}],
            "complete": True,
            "passed": each if verdicts else None,
        }
        for rollout_id, each in zip(made["rollout_id"], good, strict=True)
    ]
    return made, pl.DataFrame(rows, schema_overrides={"passed": pl.Boolean})


def night(folder: Path, iteration: int, metrics: dict[str, float]) -> dict[str, Artifact]:
    made, rewards = graded(f"n{iteration}-", list(PASSES))
    rules = [rule for rule, count in RULES.items() for _ in range(count)]
    ledger = pl.DataFrame({"rollout_id": made["rollout_id"], "kept": [rule == "kept" for rule in rules], "rule": rules})
    ledger = ledger.with_columns(value=pl.lit(None, pl.Float64), threshold=pl.lit(None, pl.Float64))
    config = {"rules": [{"rule": "truncated"}, {"rule": "no_variance"}]}
    score = float(CURVE(20.0 * iteration)) + 0.002 * (-1) ** iteration
    return {
        "rollouts": commit(
            folder,
            iteration,
            "rollouts",
            Outputs(metrics={"rollouts": 20.0, "tokens": 400.0, "truncated_fraction": 0.12}, rollouts=made),
        ),
        "grading": commit(folder, iteration, "grading", Outputs(metrics={"reward_mean": 0.35}, rewards=rewards)),
        "filtering": commit(folder, iteration, "filtering", Outputs(metrics=metrics, ledger=ledger), config),
        "evaluation": commit(folder, iteration, "evaluation", Outputs(metrics={"mean_score": score})),
    }


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Nine iterations; only the last one's filter knows the newer metrics."""
    folder = tmp_path_factory.mktemp("spending")
    made = {0: {"evaluation": commit(folder, 0, "evaluation", Outputs(metrics={"mean_score": 0.2}))}}
    newer = {
        "effective_groups": 2.0,
        "zero_variance_fraction": 0.6,
        "distinct_fraction": 0.75,
        "tokens_generated": 400.0,
        "tokens_kept": 100.0,
        "tokens_saved": 300.0,
    }
    for iteration in range(1, ITERATIONS + 1):
        made[iteration] = night(folder, iteration, newer if iteration == ITERATIONS else {})
    return {f"{k:05d}.{step}": each for k, steps in made.items() for step, each in steps.items()}


@pytest.fixture(scope="module")
def content(history):
    return gather(history, ReportConfig(bins=5))


def test_the_funnel_follows_the_rules_in_their_order(content):
    assert content.spending.funnel == [
        ("generated", 20),
        ("graded", 18),
        ("after truncated", 17),
        ("after no_variance", 5),
        ("kept", 5),
    ]


def test_numbers_of_an_iteration_with_and_without_the_filters_own(content):
    old, new = content.spending.rows[0], content.spending.rows[-1]
    assert (old["generated"], old["graded"], old["kept"], old["groups"]) == (20, 20, 5, 5)
    assert (old["even_low"], old["even_high"], old["effective_groups"]) == (2, 1, 2)
    assert old["zero_variance_fraction"] == pytest.approx(3 / 5) and old["pass_rate"] == pytest.approx(7 / 20)
    assert (old["tokens_generated"], old["tokens_kept"], old["distinct_fraction"]) == (400, None, None)
    assert (new["tokens_saved"], new["distinct_fraction"], new["zero_variance_fraction"]) == (300, 0.75, 0.6)


def test_difficulty_counts_every_prompt_before_the_filter(content):
    last = content.difficulty.filter(iteration=ITERATIONS)
    assert last["middle"].to_list() == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert last["share"].to_list() == pytest.approx([0.4, 0.2, 0.2, 0.0, 0.2])


def test_rounds_count_once_in_the_steps_that_join_them(tmp_path):
    """One round screened in two goes, another without a rest: the steps of `flows/rounds.py`, stored twice."""
    parts = {"1": graded("a", [1, 0]), "1-rest": graded("b", [3]), "2": graded("c", [4, 4])}
    made = {}
    for part, (rollouts, rewards) in parts.items():
        sampled = Outputs(metrics={"tokens": 10.0}, rollouts=rollouts)
        made[f"rollouts-{part}"] = commit(tmp_path, 1, f"rollouts-{part}", sampled)
        made[f"grading-{part}"] = commit(tmp_path, 1, f"grading-{part}", Outputs(rewards=rewards))
    every = [pl.concat(frames) for frames in zip(*parts.values(), strict=True)]
    made |= {
        "select": commit(tmp_path, 1, "select", Outputs(metrics={"prompts": 2.0})),
        "rollouts": commit(tmp_path, 1, "rollouts", Outputs(metrics={"tokens": 30.0}, rollouts=every[0])),
        "evaluation-rollouts": commit(tmp_path, 1, "evaluation-rollouts", Outputs(rollouts=graded("d", [4])[0])),
        "grading": commit(tmp_path, 1, "grading", Outputs(rewards=every[1])),
    }
    made["rewards-2"] = made["grading"]
    rates = prompt_rates(made).sort("prompt_id")
    assert rates.select("prompt_id", "graded", "rate").rows() == [("p0", 12, 8 / 12), ("p1", 8, 0.5)]
    row = iteration_spending(1, made, rates)
    assert (row["generated"], row["graded"], row["tokens_generated"]) == (20, 20, 30)
    assert row["pass_rate"] == pytest.approx((8 / 12 + 0.5) / 2)
    # What slow graders settled is what trained.
    settled = every[1].with_columns(passed=pl.lit(True))
    made["rewards"] = commit(tmp_path, 1, "rewards", Outputs(rewards=settled))
    assert prompt_rates(made)["rate"].to_list() == [1.0, 1.0]


def test_under_screening_the_pass_rate_is_that_of_the_first_samples(tmp_path):
    """Of prompts 0/4 and 2/4 the latter goes on: its rest says nothing of the other."""
    rollouts, rewards = graded("a", [0, 2])
    more = graded("b", [0, 2])
    rest = more[0].filter(prompt_id="p1")
    made = {
        "select": commit(tmp_path, 1, "select", Outputs(metrics={"first_pass_rate": 0.25})),
        "rollouts": commit(tmp_path, 1, "rollouts", Outputs(rollouts=pl.concat([rollouts, rest]))),
        "grading": commit(tmp_path, 1, "grading", Outputs(rewards=pl.concat([rewards, more[1]]))),
    }
    row = iteration_spending(1, made, prompt_rates(made))
    assert (row["generated"], row["groups"], row["pass_rate"]) == (12, 2, 0.25)


def test_pass_rates_do_without_verdicts(tmp_path):
    bare = graded("d", [1, 4], verdicts=False)
    without = {
        "rollouts": commit(tmp_path, 2, "rollouts", Outputs(rollouts=bare[0])),
        "grading": commit(tmp_path, 2, "grading", Outputs(rewards=bare[1].with_columns(pl.col("reward") * 10))),
    }
    scaled = prompt_rates(without).sort("prompt_id")
    assert scaled.select("rate", "high").rows() == [(2.5, False), (10.0, True)]


def test_the_curve_goes_through_the_held_out_scores(content):
    assert content.curve_points[0] == (0.0, 0.2) and content.curve_points[-1][0] == 180.0
    assert content.curve.asymptote.low < 0.6 < content.curve.asymptote.high
    assert content.curve.curve(180.0) == pytest.approx(float(CURVE(180.0)), abs=0.01)


def test_iterations_that_the_history_lacks_count_too():
    spent = [{"iteration": 7, "generated": 10}, {"iteration": 8, "generated": 20}]
    judged = [{"iteration": k, "mean_score": 0.1 * k, "same_prompts": k != 7} for k in (0, 7, 8)]
    assert curve_points(judged, spent) == [(0.0, 0.0), (90.0, pytest.approx(0.8))]


def test_the_page_shows_it(content):
    html = render(content)
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', html, re.DOTALL)[1])
    assert {"reward-curve", "funnel", "difficulty", "groups", "tokens", "diversity"} <= set(figures)
    assert figures["funnel"]["data"][0]["x"] == [20, 18, 17, 5, 5]
    assert [trace["y"][0] for trace in figures["groups"]["data"]] == [2, 2, 1, 2]
    assert figures["tokens"]["data"][1]["y"] == [300]
    text = " ".join(re.sub(r"<[^>]+>", " ", html.split("<script>")[0]).split())
    assert "Where generation went" in text and "9 20 20 5 5 2 60.0 % 0.350 75.0 % 400 300" in text
    assert "prompts are too hard : 40% of the groups have nothing but bad rollouts, above 17%." in text


def test_the_stage_keeps_advice_and_curve(history, tmp_path):
    outputs = report.function(history=history, config=ReportConfig(), context=context(tmp_path))
    rules = [each["rule"] for each in outputs.facts["advice"]]
    assert rules[-3:] == ["prompts are too easy", "prompts are too hard", "answers are cut off"]
    assert outputs.metrics["asymptote_low"] < 0.6 < outputs.metrics["asymptote_high"]
    drawn = {"reward-curve.png", "funnel.png", "groups.png", "difficulty.png"}
    assert drawn <= set(outputs.volatile_files)
    assert all(path.stat().st_size > 4000 for name, path in outputs.volatile_files.items() if name in drawn)


def evidence(**given) -> Evidence:
    """Evidence of a healthy campaign, but for what is given."""
    rows = [{"groups": 100, "even_high": 5, "even_low": 10}] * 3
    healthy = {
        "spending": rows,
        "rewards": [{"reward_mean": value} for value in (0.2, 0.31, 0.39, 0.5, 0.61)],
        "evaluations": [{"mean_score": value} for value in (0.2, 0.29, 0.42, 0.5, 0.58)],
        "rollouts": [{"truncated_fraction": 0.01}] * 3,
        "reward_models": [{"heldout_accuracy": 0.7}],
        "curve": None,
    }
    return Evidence(**healthy | given)


def curve_until(last: float, noise: float = 0.0):
    compute = np.concatenate([[0.0], np.geomspace(5, last, 12)])
    return fit_curve(compute, CURVE(compute) + np.random.default_rng(0).normal(0, noise, 13), seed=0, resamples=40)


def test_a_healthy_campaign_needs_no_advice():
    assert advise(evidence()) == []


@pytest.mark.parametrize(
    ("given", "rule", "found"),
    [
        ({"curve": curve_until(4_000)}, "rollouts are saturated", "less than 0.02"),
        ({"curve": curve_until(60, 0.001)}, "rollouts still pay", "to gain"),
        ({"spending": [{"groups": 50, "even_high": 5, "even_low": 0}]}, "prompts are too easy", "10% of the groups"),
        ({"spending": [{"groups": 50, "even_high": 0, "even_low": 9}]}, "prompts are too hard", "18% of the groups"),
        ({"reward_models": [{"heldout_accuracy": 0.58}]}, "the reward model is the bottleneck", "58% of the held-out"),
        (
            {"evaluations": [{"mean_score": value} for value in (0.30, 0.32, 0.29, 0.31, 0.30)]},
            "the reward model is the bottleneck",
            "the held-out score doesn't",
        ),
        (
            {"rollouts": [{"truncated_fraction": 0.07}]},
            "answers are cut off",
            "7% of the rollouts are cut off, above 5%",
        ),
        ({"rollouts": [{"truncated_fraction": 0.2}]}, "answers are cut off", "a tenth precedes instability"),
    ],
)
def test_each_rule_speaks_alone(given, rule, found):
    [advice] = advise(evidence(**given))
    assert advice.rule == rule and found in advice.found and advice.do


def test_without_a_reward_model_none_is_blamed():
    flat = [{"mean_score": 0.3}] * 5
    assert advise(evidence(reward_models=[], evaluations=flat)) == []


def test_few_pairs_and_a_wide_interval_blame_no_reward_model():
    few = {"heldout_accuracy": 0.4, "heldout_accuracy_high": 0.5, "heldout_pairs": 29}
    wide = {"heldout_accuracy": 0.55, "heldout_accuracy_high": 0.65, "heldout_pairs": 200}
    for model in (few, wide):
        assert advise(evidence(reward_models=[model])) == []
    [advice] = advise(evidence(reward_models=[few | {"heldout_pairs": 30}]))
    assert "40% of the held-out pairs" in advice.found


def test_old_iterations_are_forgotten():
    bad, good = {"groups": 10, "even_high": 0, "even_low": 9}, {"groups": 10, "even_high": 0, "even_low": 1}
    assert advise(evidence(spending=[bad] * 5 + [good] * 3)) == []


def test_curve_of_too_few_iterations_is_left_out(history):
    some = {key: each for key, each in history.items() if key < "00004"}
    content = gather(some, ReportConfig())
    assert content.curve is None and "Reward against compute" not in render(content)
