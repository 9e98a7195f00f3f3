"""What of a pair enters the loss: rankings, margins, doubts, and each member's weight."""

from collections import defaultdict
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from storage.errors import InputError
from storage.records import RECORDS
from tasks.reward_model.config import RewardModelConfig
from tasks.reward_model.pairs import Pair
from tasks.reward_model.rankings import ranking_of
from tasks.reward_model.terms import with_terms
from tasks.reward_model.weights import weighed

few = settings(deadline=None, max_examples=25)
EMPTY = np.array([1], dtype=np.int32)


@few
@given(order=st.permutations(range(6)), seed=st.integers(0, 99))
def test_all_pairs_and_neighbours_are_the_ranking_and_a_gap_is_none(order, seed):
    every = [(order[i], order[j]) for i in range(6) for j in range(i + 1, 6)]
    shuffled = [every[k] for k in np.random.default_rng(seed).permutation(len(every))]
    neighbours = list(pairwise(order))
    assert ranking_of(shuffled) == list(order)
    assert ranking_of(neighbours) == list(order)
    gap = [pair for pair in every if pair != neighbours[seed % 5]]
    assert ranking_of(gap) is None
    assert ranking_of([*every, (order[-1], order[0])]) is None


def pairs(clusters=40, per_cluster=3):
    return [Pair(f"p{c}-{n}", f"c{c}", EMPTY, EMPTY, EMPTY) for c in range(clusters) for n in range(per_cluster)]


def test_members_weigh_clusters_each_in_its_own_way_whatever_the_order():
    found = weighed(pairs(), 5, bootstrap=True, seed=3)
    by_cluster = defaultdict(set)
    for pair in found:
        by_cluster[pair.cluster_id].add(pair.weights)
    assert all(len(weights) == 1 for weights in by_cluster.values())
    weights = np.array([next(iter(each)) for each in by_cluster.values()])
    np.testing.assert_allclose(weights.mean(axis=0), 1)
    assert (weights > 0).all()
    assert len(np.unique(weights[0])) == 5
    again = {pair.pair_id: pair.weights for pair in weighed(pairs()[::-1], 5, bootstrap=True, seed=3)}
    assert again == {pair.pair_id: pair.weights for pair in found}


def test_the_weights_vary_as_much_as_a_bootstrap():
    """The variance of a weighted mean over clusters is that of a mean: sum of (w/n)^2 var = 1/n on average."""
    found = weighed(pairs(clusters=400, per_cluster=1), 64, bootstrap=True, seed=0)
    weights = np.array([pair.weights for pair in found])
    assert weights.var(axis=0).mean() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("members", "bootstrap"), [(1, True), (4, False)])
def test_without_a_bootstrap_every_weight_is_one(members, bootstrap):
    assert {pair.weights for pair in weighed(pairs(), members, bootstrap=bootstrap, seed=0)} == {(1.0,) * members}


def frame(**columns):
    count = len(columns["pair_id"])
    rest = dict(prompt_id="q", cluster_id="c", chosen="good", rejected="bad", source="human", split="train")
    rows = [
        {
            **rest,
            "messages": [{"role": "user", "content": "hi"}],
            **{name: values[i] for name, values in columns.items()},
        }
        for i in range(count)
    ]
    schema = dict(RECORDS["preferences"].create_empty().schema)
    if "tie" in columns:
        schema["tie"] = pl.Boolean()
    return pl.DataFrame(rows, schema=schema)


def test_the_margin_is_in_proportion_to_the_strength_within_its_source():
    preferences = frame(
        pair_id=list("abcdef"), source=["human"] * 3 + ["click"] * 3, strength=[0.0, 1.0, 2.0, 50.0, 100.0, None]
    )
    found = with_terms(preferences, None, RewardModelConfig(margin=2.0))
    human, click = found["margin"][:3].to_list(), found["margin"][3:].to_list()
    assert human[0] == 0
    assert human[2] == pytest.approx(2.0)
    assert human[1] == pytest.approx(1.0, rel=0.1)
    assert click[2] == 0
    assert click[1] == pytest.approx(2.0)
    assert with_terms(preferences, None, RewardModelConfig())["margin"].to_list() == [0.0] * 6


def test_a_tie_has_no_margin_and_old_frames_have_no_ties():
    preferences = frame(pair_id=["a", "b", "c"], strength=[1.0, 1.0, 1.0], tie=[True, False, None])
    found = with_terms(preferences, None, RewardModelConfig(margin=1.0, smoothing=0.1))
    assert found["tie"].to_list() == [True, False, False]
    assert found["margin"].to_list() == [0.0, 1.0, 1.0]
    assert found["smoothing"].to_list() == [0.1] * 3
    old = frame(pair_id=["a"], strength=[1.0]).drop("tie", strict=False)
    assert with_terms(old, None, RewardModelConfig())["tie"].to_list() == [False]


QUALITY = {
    "pair_id": ["flip", "drop", "smooth", "sure", "held"],
    "action": ["flip", "drop", "smooth", "keep", "flip"],
    "smoothing": [0.0, 0.0, 0.3, 0.0, 0.0],
    "margin": [0.0, 0.0, 0.0, 0.7, 0.0],
}


def test_doubtful_labels_are_flipped_dropped_and_smoothed_in_training_alone():
    preferences = frame(
        pair_id=["flip", "drop", "smooth", "sure", "held", "unknown"],
        split=["train"] * 4 + ["eval", "train"],
        human_score_chosen=[1.0] * 6,
        human_score_rejected=[5.0] * 6,
    )
    found = with_terms(preferences, pl.DataFrame(QUALITY), RewardModelConfig(smoothing=0.1))
    rows = {row["pair_id"]: row for row in found.to_dicts()}
    assert list(rows) == ["flip", "smooth", "sure", "held", "unknown"]
    assert (rows["flip"]["chosen"], rows["flip"]["human_score_chosen"]) == ("bad", 5.0)
    assert (rows["held"]["chosen"], rows["unknown"]["chosen"]) == ("good", "good")
    assert [rows[name]["smoothing"] for name in rows] == [0.1, 0.3, 0.1, 0.1, 0.1]
    assert [rows[name]["margin"] for name in rows] == [0.0, 0.0, 0.7, 0.0, 0.0]
    assert found.columns == with_terms(preferences, None, RewardModelConfig()).columns


def test_margins_of_pair_quality_need_a_loss_that_knows_them():
    with pytest.raises(InputError, match="pair_quality gives margins, which loss davidson doesn't know"):
        with_terms(frame(pair_id=["sure"]), pl.DataFrame(QUALITY), RewardModelConfig(loss="davidson"))


def test_pairs_of_other_sources_are_left_out():
    preferences = frame(pair_id=["a", "b"], source=["ai", "human"])
    assert with_terms(preferences, None, RewardModelConfig(sources=["ai"]))["pair_id"].to_list() == ["a"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "plackett_luce", "margin": 1.0}, "knows no margin"),
        ({"loss": "davidson", "margin": 1.0}, "knows no margin"),
        ({"loss": "plackett_luce", "smoothing": 0.1}, "knows no smoothing"),
        ({"loss": "plackett_luce", "regression_weight": 0.1}, "knows no absolute scores"),
        ({"kind": "generative", "members": 5, "head": "mlp"}, "members, head can't be set"),
        ({"smoothing": 0.5}, "less than 0.5"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        RewardModelConfig(**options)
