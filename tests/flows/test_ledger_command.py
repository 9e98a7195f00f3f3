"""`posttrain ledger`: which rollouts fell to which rule, at what value, with their text."""

import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import polars as pl
import pytest
from command import invoke as run_command
from graded_rollouts import batch_rows, rollout_rows

from flows.ledger_command import register
from storage.artifacts import Artifact, Outputs
from storage.campaigns import Campaign, State
from storage.commits import Attempt, Recipe, commit_outputs
from storage.errors import InputError

TEXTS = ["good [red]one[/red]", "another", "cut o", "cut of", "cut off", "the same", "the same"]
RULES = ["kept", "kept", "truncated", "truncated", "truncated", "no_variance", "no_variance"]
VALUES = [None, None, 1.0, 1.0, 1.0, 0.0, 5e-7]


@pytest.fixture
def root(tmp_path: Path) -> str:
    """An iteration whose rollouts came in two rounds."""
    root = str(tmp_path / "root")

    def commit(stage: str, outputs: Outputs, name: str = "0", **inputs: str) -> str:
        made = Artifact(root=root, stage=stage, fingerprint=f"{stage}{name}")
        commit_outputs(Recipe(made, stage, 1, {}, inputs, None), Attempt(datetime.now(UTC), tmp_path), outputs)
        return made.id

    batch = commit("select", Outputs(batch=batch_rows(2)))
    first = commit("rollouts", Outputs(rollouts=rollout_rows([("p0", text) for text in TEXTS[:5]])), batch=batch)
    later = rollout_rows([("p1", text) for text in TEXTS[5:]], prefix="s")
    second = commit("rollouts", Outputs(rollouts=later), name="1", batch=batch)
    ids = [*(f"r{index}" for index in range(5)), "s0", "s1"]
    rewards = pl.DataFrame(
        [
            {"rollout_id": each, "reward": index / 8, "components": [{"name": "a", "value": 0.5}], "complete": True}
            for index, each in enumerate(ids)
        ]
    ).with_columns(passed=pl.lit(None, pl.Boolean))
    rewarded = commit("grading", Outputs(rewards=rewards))
    ledger = pl.DataFrame(
        {
            "rollout_id": ids,
            "kept": [rule == "kept" for rule in RULES],
            "rule": RULES,
            "value": VALUES,
            "threshold": [None] * 5 + [1e-6] * 2,
        }
    )
    filtering = commit(
        "filtering", Outputs(ledger=ledger), **{"rollouts.0": first, "rollouts.1": second, "rewards": rewarded}
    )
    for iteration, steps in ((0, {}), (1, {"filtering": filtering})):
        Campaign(root, "nightly").commit(
            State(
                campaign="nightly",
                iteration=iteration,
                policy=first,
                champion=first,
                champion_evaluation=first,
                steps=steps,
            )
        )
    return root


invoke = partial(run_command, register, "ledger")


def test_without_a_rule_counts_and_two_examples_each(root):
    text = invoke("nightly", "--iteration", "1", "--root", root)
    rows = [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]
    assert "kept 2 28.6%" in rows
    assert "truncated 3 42.9% 1" in rows
    assert "no_variance 2 28.6% 0 to 5e-07 1e-06" in rows
    assert "truncated, 2 of 3 rollouts" in text and "cut of" in text and "cut off" not in text
    assert "r0, reward 0.000" in text and "good [red]one[/red]" in text and "question 0" in text


def test_one_rule_up_to_the_limit(root):
    text = invoke("nightly", "--rule", "no_variance", "--root", root)
    assert "s1, reward 0.750, value 5e-07, threshold 1e-06" in text and "question 1" in text and "r2" not in text
    assert "truncated, 1 of 3" in invoke("nightly", "--rule", "truncated", "--limit", "1", "--root", root)


def test_as_json(root):
    found = json.loads(invoke("nightly", "--iteration", "1", "--rule", "truncated", "--root", root, "--json"))
    assert [(row["rule"], row["rollouts"]) for row in found["rules"]] == [
        ("kept", 2),
        ("truncated", 3),
        ("no_variance", 2),
    ]
    assert [row["text"] for row in found["rollouts"]["truncated"]] == TEXTS[2:5]
    first = found["rollouts"]["truncated"][0]
    assert (first["rollout_id"], first["reward"], first["value"], first["threshold"]) == ("r2", 0.25, 1.0, None)
    assert first["prompt"] == "question 0" and first["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nightly", "--rule", "stale"], r"rule 'stale'; there are kept \(2\), truncated \(3\), no_variance \(2\)"),
        (["nightly", "--iteration", "7"], r"iteration 7 isn't committed below .*; there are \[1\]"),
        (["daily"], r"'daily': unknown below .*; there are nightly"),
    ],
)
def test_what_there_is_not_is_said_with_what_there_is(root, arguments, message):
    with pytest.raises(InputError, match=message):
        invoke(*arguments, "--root", root)
