"""The gate of reward models: each criterion, the paired comparison, and nobody promoted by what it trained on."""

import math

import numpy as np
import polars as pl
import pytest
from graded_rollouts import context
from hypothesis import given, settings
from hypothesis import strategies as st
from reward_checks import checked_rows, judged, made, preference_rows, preferences_of

from storage.errors import InputError
from storage.records import GateCriterion
from tasks.reward_gate.comparison import TIES, Checked, compare, held_out_pairs, refuse_overlap, training_pairs
from tasks.reward_gate.config import RewardGateConfig
from tasks.reward_gate.stage import judge_candidate
from tasks.reward_gate.verdict import CRITERIA, Case, judge, nearest_to_zero

GOOD = {"pairs": 60.0, "heldout_accuracy": 0.8, "heldout_accuracy_low": 0.7, "heldout_accuracy_high": 0.9}
UNTRAINED = pl.DataFrame(schema=dict.fromkeys(TIES, pl.String))


def case(candidate: dict, incumbent: dict | None = None, right=None, before=None, **limits) -> Case:
    """A candidate with these metrics against a present one with those; `right` and `before`: their held-out pairs."""
    config = RewardGateConfig(**limits)
    now = Checked(GOOD | candidate, judged(right or [1.0] * 60))
    if incumbent is None:
        return Case(now, None, None, config)
    present = Checked(GOOD | incumbent, judged(before or [1.0] * 60))
    return Case(now, present, compare(now, present, UNTRAINED, level=0.95, seed=0), config)


@pytest.mark.parametrize(
    ("metrics", "limits", "failed"),
    [
        ({}, {}, []),
        ({"heldout_accuracy_low": 0.5}, {}, ["accuracy"]),
        ({"heldout_accuracy_low": 0.51}, {}, []),
        ({"heldout_accuracy_low": 0.55}, {"min_over_chance": 0.05}, ["accuracy"]),
        ({"pairs": 19.0}, {}, ["heldout_pairs"]),
        ({"pairs": 19.0}, {"min_pairs": 19}, []),
        ({"heldout_accuracy_low": math.nan}, {}, ["accuracy"]),
        ({"gap_mae": 9.0}, {}, []),
        ({"gap_mae": 9.0}, {"max_gap": 8.0}, ["gap"]),
        ({"length_correlation": 0.4}, {}, ["length_bias"]),
        ({"length_correlation": 0.4, "length_correlation_low": 0.3, "length_correlation_high": 0.6}, {}, []),
        (
            {"length_correlation": 0.4, "length_correlation_low": 0.31, "length_correlation_high": 0.6},
            {},
            ["length_bias"],
        ),
        ({"length_correlation": -0.4, "length_correlation_low": -0.6, "length_correlation_high": 0.1}, {}, []),
        ({"length_correlation": -0.6}, {}, ["length_bias"]),
        ({"length_correlation": -0.5}, {"max_length_correlation": 0.5}, []),
        ({"anchor_agreement": 0.49}, {}, ["anchors"]),
        ({"anchor_agreement": 0.5}, {}, []),
        (
            {"pairs": 3.0, "heldout_accuracy_low": 0.2, "gap_mae": 9.0},
            {"max_gap": 1.0},
            ["heldout_pairs", "accuracy", "gap"],
        ),
    ],
)
def test_the_first_reward_model(metrics, limits, failed):
    found = judge(case(metrics, **limits))
    assert [each.name for each in found.criteria if not each.passed] == failed
    assert found.promoted is (not failed)
    assert [each.name for each in found.criteria] == list(CRITERIA)
    assert GateCriterion.is_valid(found.frame)
    assert all(name in found.why for name in failed)


def test_the_first_one_may_always_grade_and_the_page_still_says_what_it_lacks():
    found = judge(case({"heldout_accuracy_low": 0.3}, first="always"))
    assert found.promoted and "accuracy 0.800 with interval [0.300, 0.900]" in found.why
    assert not judge(case({}, {}, right=[0.0] * 60, first="always")).promoted, "of the first one alone"


@pytest.mark.parametrize(
    ("candidate", "incumbent", "failed"),
    [
        ({}, {}, []),
        ({"gap_mae": 1.1}, {"gap_mae": 1.0}, []),
        ({"gap_mae": 1.2}, {"gap_mae": 1.0}, ["gap"]),
        ({"gap_mae": 1.2}, {}, []),
        ({"length_correlation": 0.7}, {"length_correlation": -0.7}, []),
        ({"length_correlation": 0.7}, {"length_correlation": 0.1}, ["length_bias"]),
        ({"anchor_agreement": 0.88}, {"anchor_agreement": 0.9}, []),
        ({"anchor_agreement": 0.87}, {"anchor_agreement": 0.9}, ["anchors"]),
        ({"anchor_agreement": 0.49}, {"anchor_agreement": 0.1}, ["anchors"]),
        ({"heldout_accuracy_low": 0.1}, {}, []),
    ],
)
def test_a_candidate_against_the_present_one(candidate, incumbent, failed):
    found = judge(case(candidate, incumbent))
    assert [each.name for each in found.criteria if not each.passed] == failed


def test_a_candidate_is_compared_on_the_same_pairs():
    """Both have half of the pairs right: which half decides how sure the difference is."""
    half, other = [1.0] * 30 + [0.0] * 30, [0.0] * 30 + [1.0] * 30
    same = judge(case({}, {}, right=half, before=half))
    assert same.promoted and ": difference +0.000 with interval [+0.000, +0.000]" in same.criteria[1].why
    unsure = judge(case({}, {}, right=half, before=other))
    assert not unsure.promoted and unsure.criteria[1].candidate == unsure.criteria[1].incumbent == 0.5
    worse = judge(case({}, {}, right=[0.0] * 60))
    assert not worse.promoted and "accuracy 0.000 after 1.000 on the same 60 pairs" in worse.why


@settings(max_examples=40, deadline=None)
@given(
    right=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=6, max_size=40),
    loss=st.sampled_from([0.0, 0.05, 0.3]),
    seed=st.integers(0, 3),
)
def test_the_verdict_is_what_the_interval_says(right, loss, seed):
    now, before = Checked(GOOD, judged(right)), Checked(GOOD, judged(list(reversed(right))))
    compared = compare(now, before, UNTRAINED, level=0.9, seed=seed)
    found = judge(Case(now, before, compared, RewardGateConfig(max_accuracy_loss=loss, min_pairs=2)))
    interval = compared.difference
    assert interval.low <= interval.high and compared.pairs == len(right)
    assert found.promoted is (interval.low >= -loss and interval.high >= 0)
    assert compared.candidate == pytest.approx(np.mean(right))


def test_pairs_that_the_present_one_trained_on_speak_for_nobody():
    """By pair, by prompt, by cluster: 3 clusters of 2 pairs are left out."""
    now, before = Checked(GOOD, judged([1.0] * 20)), Checked(GOOD, judged([0.0] * 6 + [1.0] * 14))
    rows = [("p0", "x", "x"), ("y", "pq1", "y"), ("z", "z", "pc2"), ("w", "w", "w")]
    trained = pl.DataFrame(rows, schema=dict.fromkeys(TIES, pl.String), orient="row")
    compared = compare(now, before, trained, level=0.95, seed=0)
    assert (compared.pairs, compared.left_out) == (15, 5), "of the first cluster one pair, the other two whole"
    found = judge(Case(now, before, compared, RewardGateConfig(min_pairs=16)))
    assert not found.promoted and "15 held-out pairs that both judged" in found.why and "5 more trained" in found.why
    nothing = compare(now, before, now.pairs, level=0.95, seed=0)
    assert (nothing.pairs, nothing.difference) == (0, None)
    assert not judge(Case(now, before, nothing, RewardGateConfig())).promoted


def test_one_cluster_has_no_interval():
    now, before = (Checked(GOOD, judged([1.0] * 30, per_cluster=30)) for _ in range(2))
    found = judge(Case(now, before, compare(now, before, UNTRAINED, level=0.95, seed=0), RewardGateConfig()))
    assert not found.promoted and "fewer than two prompt clusters" in found.why


@pytest.mark.parametrize(
    ("low", "high", "sure"), [(0.1, 0.6, 0.1), (-0.6, -0.1, 0.1), (-0.1, 0.6, 0.0), (0.3, 0.3, 0.3), (-0.3, -0.3, 0.3)]
)
def test_the_sure_part_of_a_correlation(low, high, sure):
    assert nearest_to_zero(low, high) == sure


@pytest.mark.parametrize(("tie", "index"), [(tie, index) for index, tie in enumerate(TIES)])
def test_what_trained_is_not_what_promotes(tie, index):
    held_out, trained = preference_rows(8), preference_rows(8, split="train", prefix="t")
    both = pl.concat([held_out, trained]).lazy()
    refuse_overlap(training_pairs(both), held_out_pairs(both), "rm")
    shared = trained.with_columns(
        pl.when(pl.col("pair_id") == "t3").then(pl.lit(held_out[tie][4])).otherwise(tie).alias(tie)
    )
    both = pl.concat([held_out, shared]).lazy()
    with pytest.raises(
        InputError, match=rf"rm: held-out pair p4 and training pair (t3|p4) share {tie} {held_out[tie][4]}"
    ):
        refuse_overlap(training_pairs(both), held_out_pairs(both), "rm")


@settings(max_examples=30, deadline=None)
@given(clusters=st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=30))
def test_a_shared_cluster_is_always_found(clusters):
    rows = [(f"p{i}", f"q{i}", f"c{c}", "eval" if held else "train") for i, (c, held) in enumerate(clusters)]
    frame = pl.DataFrame(rows, schema=[*TIES, "split"], orient="row").lazy()
    by_split = [{c for c, held in clusters if held is side} for side in (True, False)]
    if by_split[0] & by_split[1]:
        with pytest.raises(InputError, match="share cluster_id"):
            refuse_overlap(training_pairs(frame), held_out_pairs(frame), "rm")
    else:
        refuse_overlap(training_pairs(frame), held_out_pairs(frame), "rm")


@pytest.fixture
def night(tmp_path):
    """What the stage takes: 40 held-out pairs, a candidate that has them right and a present one that hasn't."""
    held_out, before = preference_rows(40), preference_rows(10, split="train", prefix="old")
    pairs = preferences_of(tmp_path, "new", held_out, preference_rows(20, split="train", prefix="t"))
    old = preferences_of(tmp_path, "old", before)
    models = {
        name: made(tmp_path, "reward_model", name, {"preferences": trained})
        for name, trained in (("new", pairs), ("old", old))
    }
    checks = {
        name: made(
            tmp_path,
            "reward_check",
            name,
            {"reward_model": models[name], "preferences": pairs},
            metrics=GOOD | {"pairs": 40.0},
            checked_pairs=checked_rows(held_out, [right] * 40),
        )
        for name, right in (("new", 1.0), ("old", 0.0))
    }
    return {
        "candidate": models["new"],
        "check": checks["new"],
        "incumbent": models["old"],
        "incumbent_check": checks["old"],
        "preferences": pairs,
        "anchors": None,
        "trained_on": [pairs],
        "incumbent_trained_on": [old],
        "config": RewardGateConfig(),
        "seed": 1,
        "context": context(tmp_path),
    }


def test_the_stage_writes_the_verdict(night):
    found = judge_candidate.function(**night)
    assert found.metrics == {
        "promoted": 1.0,
        "criteria_failed": 0.0,
        "pairs_compared": 40.0,
        "pairs_left_out": 0.0,
        "accuracy_difference": 1.0,
        "accuracy_difference_low": 1.0,
        "accuracy_difference_high": 1.0,
    }
    assert found.tables["gate"]["name"].to_list() == list(CRITERIA) and found.facts == {"why": "every criterion holds"}
    swapped = {"candidate": "incumbent", "check": "incumbent_check", "trained_on": "incumbent_trained_on"}
    turned = night | {mine: night[theirs] for mine, theirs in swapped.items()}
    turned |= {theirs: night[mine] for mine, theirs in swapped.items()}
    worse = judge_candidate.function(**turned)
    assert worse.metrics["promoted"] == 0.0 and "accuracy 0.000 after 1.000" in worse.facts["why"]


def test_the_first_one_and_one_that_nobody_could_check(night):
    alone = night | {"incumbent": None, "incumbent_check": None, "incumbent_trained_on": []}
    assert judge_candidate.function(**alone).metrics == {"promoted": 1.0, "criteria_failed": 0.0}
    unknown = judge_candidate.function(**(alone | {"check": None}))
    assert unknown.metrics["promoted"] == 0.0 and "0 held-out pairs, at least 20" in unknown.facts["why"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            lambda n: {"check": n["incumbent_check"]},
            "is a check of reward_model reward_model/reward_modelold, expected",
        ),
        (lambda n: {"preferences": n["incumbent_trained_on"][0]}, "check of preferences preferences/preferencesnew"),
    ],
)
def test_a_check_of_something_else_is_refused(night, changes, message):
    with pytest.raises(InputError, match=message):
        judge_candidate.function(**(night | changes(night)))


def test_a_candidate_that_saw_the_held_out_pairs_is_refused(night, tmp_path):
    leaked = preferences_of(tmp_path, "leak", preference_rows(4, split="train"))
    with pytest.raises(
        InputError, match=r"trained on preferences/preferencesleak: held-out pair p0 .* share pair_id p0"
    ):
        judge_candidate.function(**(night | {"trained_on": [night["preferences"], leaked]}))
    anchors = preferences_of(tmp_path, "agreed", preference_rows(3, split="train", prefix="t"))
    with pytest.raises(
        InputError, match=r"anchors preferences/preferencesagreed: held-out pair t0 .* share pair_id t0"
    ):
        judge_candidate.function(**(night | {"anchors": anchors}))
    seen = judge_candidate.function(**(night | {"incumbent_trained_on": [leaked]}))
    assert (seen.metrics["pairs_compared"], seen.metrics["pairs_left_out"]) == (36.0, 4.0)
