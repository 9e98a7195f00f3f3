"""Duplicates among outputs: the estimate is near the truth, what is dropped leaves the group's mean, nights count."""

import numpy as np
import polars as pl
import pytest
from filtered import decided_of, ledger_of, rewards_of, rollouts_of, rule
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks._maths.redundancy import (
    Alike,
    alike_across,
    alike_within,
    clusters,
    repeated_shares,
    shingle,
    signatures,
    similarity,
)
from tasks.filtering.config import FilteringConfig
from tasks.filtering.graded import Graded
from tasks.filtering.output_rules import signatures_of
from tasks.filtering.trajectories import decide


def flat(rows):
    return np.array([token for row in rows for token in row], dtype=np.int32), np.array([len(row) for row in rows])


def marks_of(rows):
    return signatures(shingle(*flat(rows)), len(rows))


def jaccard(left, right, n=5):
    first, second = ({tuple(row[i : i + n]) for i in range(max(len(row) - n + 1, 1))} for row in (left, right))
    return len(first & second) / len(first | second)


ROWS = st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=8)


@settings(max_examples=80, deadline=None)
@given(rows=ROWS, n=st.integers(1, 6))
def test_shingles_are_the_n_grams_of_each_row(rows, n):
    found = shingle(*flat(rows), n)
    for index, row in enumerate(rows):
        hashes = found.hashes[found.rows == index]
        grams = [tuple(row[i : i + n]) for i in range(max(len(row) - n + 1, 1))] if row else []
        assert len(hashes) == len(grams) and len(set(hashes.tolist())) == len(set(grams))
    repeated = repeated_shares(found, len(rows))
    for row, share in zip(rows, repeated, strict=True):
        grams = [tuple(row[i : i + n]) for i in range(max(len(row) - n + 1, 1))] if row else []
        assert share == pytest.approx(1 - len(set(grams)) / len(grams) if grams else 0)


def test_a_short_row_is_no_prefix_of_a_longer_one():
    marks = marks_of([[5], [5, 0], [0, 5], [], [5]])
    assert similarity(marks[[0]], marks[[4]]) == 1
    assert all(similarity(marks[[0]], marks[[other]]) < 0.2 for other in (1, 2, 3))


def test_the_estimate_is_near_the_true_similarity():
    random = np.random.default_rng(0)
    errors = []
    for _ in range(300):
        left = random.integers(0, 5000, 256)
        right = np.where(random.random(256) < random.choice([0, 0.01, 0.03, 0.1]), random.integers(0, 5000, 256), left)
        marks = marks_of([left.tolist(), right.tolist()])
        errors.append(similarity(marks[:1], marks[1:])[0] - jaccard(left.tolist(), right.tolist()))
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.045


def test_signatures_do_not_change_between_versions():
    """They are stored, and compared with those of later nights."""
    marks = marks_of([list(range(100))])
    assert marks.shape == (1, 128)
    assert marks[0, :6].tolist() == [186, 193, 39, 209, 75, 3]


@settings(max_examples=50, deadline=None)
@given(edges=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_clusters_are_connected_components_named_by_their_lowest_row(edges):
    left, right = (np.array(side, dtype=np.int64) for side in (zip(*edges, strict=True) if edges else ((), ())))
    labels = clusters(20, Alike(left, right, np.ones(len(left))))
    reached = np.eye(20, dtype=bool)
    reached[left, right] = reached[right, left] = True
    for _ in range(5):
        reached = (reached.astype(int) @ reached.astype(int)) > 0
    np.testing.assert_array_equal(labels, reached.argmax(axis=1))


def test_candidates_across_groups_find_what_is_alike():
    random = np.random.default_rng(1)
    base = random.integers(0, 5000, (400, 200))
    near = base.copy()
    near[np.arange(400), random.integers(0, 200, 400)] = 9999
    marks = marks_of([*base.tolist(), *near.tolist()])
    labels = clusters(800, alike_across(marks, 0.85))
    assert (labels[400:] == np.arange(400)).mean() > 0.97
    assert (labels[:400] == np.arange(400)).all()


def test_a_bucket_of_equal_rows_costs_no_pairs_of_all():
    marks = np.repeat(marks_of([list(range(50))]), 20_000, axis=0)
    alike = alike_across(marks, 0.9)
    assert (clusters(20_000, alike) == 0).all()
    assert len(alike.left) <= 2 * 16 * 20_000


def test_pairs_within_groups_are_all_pairs():
    rows = [list(range(40))] * 5
    alike = alike_within(marks_of(rows), np.array([0, 1, 0, 1, 0]), 0.8)
    assert sorted(zip(alike.left.tolist(), alike.right.tolist(), strict=True)) == [(0, 2), (0, 4), (1, 3), (2, 4)]


OUTPUTS = [list(range(start, start + 60)) for start in (0, 100, 200)] + [[*range(59), 999]]
GROUPS = st.lists(
    st.lists(st.tuples(st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 3)), min_size=1, max_size=8),
    min_size=1,
    max_size=5,
)


@settings(max_examples=50, deadline=None)
@given(groups=GROUPS)
def test_dropping_redundant_outputs_keeps_the_groups_mean(groups):
    rows = [(group, reward, "stop") for group, members in enumerate(groups) for reward, _ in members]
    tokens = [OUTPUTS[output] for members in groups for _, output in members]
    decided = decided_of(rows, FilteringConfig(rules=[rule("redundant_in_group", threshold=0.7)]), tokens=tokens)
    kept = decided.filter("kept")
    for group, members in enumerate(groups):
        stayed = kept.filter(pl.col("group_id").cast(pl.String) == f"p{group}")
        assert stayed["weight"].sum() == len(members)
        mean = (stayed["weight"] * stayed["reward"]).sum() / len(members)
        assert mean == pytest.approx(np.mean([reward for reward, _ in members]))
        assert (stayed["weight"] * stayed["advantage"]).sum() == pytest.approx(0, abs=1e-9)
        # Outputs 0 and 3 say nearly the same.
        assert len(stayed) == len({(reward, output % 3) for reward, output in members})


def test_a_redundant_rollout_is_written_with_its_similarity():
    rows = [(0, 1.0, "stop")] * 3 + [(1, 1.0, "stop")]
    tokens = [OUTPUTS[0], OUTPUTS[3], OUTPUTS[1], OUTPUTS[0]]
    decided = decided_of(rows, FilteringConfig(rules=[rule("redundant_in_group")]), tokens=tokens)
    assert decided["rule"].to_list() == ["kept", "redundant_in_group", "kept", "kept"]
    assert decided["weight"].to_list() == [2, 1, 1, 1]
    true = jaccard(OUTPUTS[0], OUTPUTS[3])
    assert decided["value"][1] == pytest.approx(true, abs=0.1) and decided["threshold"][1] == 0.8


@pytest.mark.parametrize("by", ["signature", "text"])
def test_outputs_of_other_groups_fall_and_of_ones_own_stay(by):
    rows = [(0, 1.0, "stop"), (0, 0.0, "stop"), (1, 1.0, "stop"), (1, 0.0, "stop"), (2, 0.0, "stop")]
    tokens = [OUTPUTS[0], OUTPUTS[0], OUTPUTS[0], OUTPUTS[1], [1, 2]]
    texts = ["the first", "the  First", "THE FIRST", "another", "The first"]
    decided = decided_of(rows, FilteringConfig(rules=[rule("redundant_across", by=by)]), tokens=tokens, texts=texts)
    # The last one is too short to tell.
    assert decided["rule"].to_list() == ["kept", "kept", "redundant_across", "kept", "kept"]
    assert decided["value"][2] == 1


@pytest.mark.parametrize("by", ["signature", "text"])
def test_outputs_of_earlier_nights_fall_as_long_as_they_count(by):
    rows = [(0, 1.0, "stop"), (0, 0.0, "stop")]
    texts = ["the first", "another"]
    config = FilteringConfig(rules=[rule("redundant_across", by=by, nights=1)])
    first = decided_of(rows, config, tokens=OUTPUTS[:2], texts=texts)
    stored = signatures_of(first).with_columns(pl.col("signature").cast(pl.List(pl.UInt8)))
    rollouts = rollouts_of(rows, tokens=[OUTPUTS[0], OUTPUTS[2]], texts=["The First", "a third"], prefix="s")
    for nights_ago, rules_found in ((1, ["redundant_across", "kept"]), (2, ["kept", "kept"])):
        earlier = stored.with_columns(night=pl.lit(nights_ago))
        decided = decide([rollouts], Graded(rewards_of(rows, prefix="s").lazy()), config, earlier=earlier)
        assert ledger_of(decided)["rule"].to_list() == rules_found
