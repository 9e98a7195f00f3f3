"""Nights on which no reward model comes of it: what is counted, what keeps the one in charge. No server, no model."""

import logging
from dataclasses import replace
from datetime import UTC, datetime

import polars as pl
import pytest
from graded_rollouts import committed

from flows import reward_models
from flows.config import parse_config
from flows.reward_models import InCharge, Night, baseline, refresh
from flows.slow_grades import Graded
from storage.artifacts import Artifact, Outputs
from storage.campaigns import Campaign, State
from storage.commits import Attempt, Recipe, commit_outputs
from storage.errors import TooFew
from storage.records import RECORDS
from tasks._stage import RunContext

REST = {
    "campaign": "nights",
    "model": {"path": "model"},
    "curate": {"sources": [{"generator": "haiku"}]},
    "grading": {"graders": [{"grader": "verifier"}]},
}
USUAL = {"policy": "base_model/1", "champion": "base_model/1", "champion_evaluation": "e/1"}
GRADED, TIED, HUMAN = (20, "grader", False), (9, "human", True), (4, "human", False)


@pytest.fixture(autouse=True)
def log(monkeypatch):
    """The flow's log, without a flow."""
    monkeypatch.setattr(reward_models, "get_run_logger", lambda: logging.getLogger("nights"))


def night(folder, *groups, reward_model=None, iteration=1, state=None, **sections) -> Night:
    """One with so many training pairs of a source, ties or not; as many are held out."""
    rows = [
        {"pair_id": f"{split}{source}{tie}{number}", "prompt_id": f"q{number}", "cluster_id": f"c{number}"}
        | {"messages": [{"role": "user", "content": "?"}], "chosen": "a", "rejected": "b"}
        | {"source": source, "split": split, "tie": tie}
        for count, source, tie in groups
        for split in ("train", "eval")
        for number in range(count)
    ]
    frame = pl.DataFrame(rows, schema=RECORDS["preferences"].create_empty().schema)
    root = str(folder / "root")
    pairs = committed(folder, "preferences", preferences=frame)
    rollouts, batch, grading = (
        Artifact(root=root, stage=stage, fingerprint="0") for stage in ("rollouts", "select", "grading")
    )
    base = Artifact(root=root, stage="base_model", fingerprint="1")
    config = parse_config(REST | {"root": root, "reward_model": reward_model or {}} | sections, "test")
    run = RunContext(root, "nights", iteration)
    known = state or State(campaign="nights", iteration=iteration - 1, **USUAL)
    return Night(known, config, run, base, Graded(rollouts, batch, grading), pairs, None)


def test_the_first_watch_stands_for_a_check_that_there_never_was(tmp_path, caplog):
    """Of a reward model that was promoted without one, also where another one was watched before."""
    caplog.set_level(logging.INFO)
    root = str(tmp_path / "root")
    campaign, present = Campaign(root, "nights"), "reward_model/now"
    made = night(tmp_path, HUMAN, reward_model={"when": "trigger"}, iteration=4)
    charge = InCharge(Artifact.at(root, present), None)
    campaign.commit(State(campaign="nights", iteration=0, **USUAL))
    for k, watched in ((1, "reward_model/before"), (2, present), (3, present)):
        if k == 2:
            assert baseline(replace(made, run=replace(made.run, iteration=2)), charge) is None
            assert "reward_model/now grades without a check: signs of drift are measured from this" in caplog.text
        check = Artifact(root=root, stage="reward_check", fingerprint=f"k{k}")
        recipe = Recipe(check, "reward_check", 1, {}, {"reward_model": watched}, None)
        commit_outputs(recipe, Attempt(datetime.now(UTC), tmp_path), Outputs(metrics={"pairs": float(k)}))
        campaign.commit(State(campaign="nights", iteration=k, steps={"reward_check": check.id}, **USUAL))
    assert baseline(made, charge).id == "reward_check/k2"
    assert baseline(made, InCharge(charge.reward_model, check)).id == "reward_check/k3"


@pytest.mark.parametrize(
    ("sources", "training"),
    [(None, 24), (("human",), 4), (("grader", "human"), 24), (("ai",), 0)],
)
def test_pairs_that_will_train_are_counted(tmp_path, sources, training):
    made = night(tmp_path, GRADED, TIED, HUMAN)
    assert made.count("train", sources) == made.count("eval", sources) == training


def test_a_night_on_which_nobody_labels_keeps_the_reward_model(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(reward_models, "make_reward_model", None)
    found = refresh(night(tmp_path, GRADED, TIED, HUMAN, reward_model={"sources": ["human"]}))
    assert found == (None, None)
    assert "4 training pairs of source human that aren't ties, reward_model.min_pairs is 16" in caplog.text


def test_a_training_that_finds_too_few_keeps_the_reward_model(tmp_path, monkeypatch, caplog):
    def too_long(*_, **__):
        raise TooFew("3 preference pairs to train on")

    monkeypatch.setattr(reward_models, "make_reward_model", too_long)
    assert refresh(night(tmp_path, GRADED)) == (None, None)
    assert "no reward model is trained: 3 preference pairs to train on" in caplog.text


def test_a_check_of_pairs_that_are_all_too_long_is_none(tmp_path, monkeypatch, caplog):
    """The present one isn't watched, and grades on."""

    def too_long(**_):
        raise TooFew("every one of the 20 pairs is longer")

    monkeypatch.setattr(reward_models, "check_reward_model", too_long)
    state = State(campaign="nights", iteration=1, reward_model="reward_model/1", **USUAL)
    found = refresh(night(tmp_path, GRADED, iteration=2, state=state))
    assert found.ids() == {"reward_model": "reward_model/1", "reward_check": None}
    assert "reward_model/1 isn't checked: every one of the 20 pairs is longer" in caplog.text
