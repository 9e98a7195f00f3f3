"""The filter: the ledger is complete, the baseline unbiased by what is dropped, the advantages those of the group."""

from math import comb
from typing import get_args

import numpy as np
import polars as pl
import pytest
from filtered import COMPONENTS, decided_of, ledger_of, rewards_of, rollouts_of, rule, rules, trained_of
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import InputError, StageFailed
from storage.records import LedgerEntry, Trajectory
from tasks.filtering.config import Advantage, FilteringConfig, OverlongConfig
from tasks.filtering.graded import Graded
from tasks.filtering.metrics import filter_metrics
from tasks.filtering.trajectories import decide

ROLLOUTS = st.lists(
    st.tuples(
        st.integers(0, 4), st.sampled_from([0.0, 0.25, 0.5, 1.0, None]), st.sampled_from(["stop", "length", "abort"])
    ),
    min_size=1,
    max_size=40,
)
ANY_RULE = st.one_of(
    st.sampled_from(["no_variance", "truncated", "aborted", "best_only", "redundant_in_group", "redundant_across"]).map(
        rule
    ),
    st.builds(rule, st.just("majority_only"), grader=st.just("a"), scope=st.sampled_from(["rollout", "group"])),
    st.builds(rule, st.just("max_variance"), keep=st.integers(1, 5), sees=st.sampled_from(["all", "kept"])),
    st.builds(rule, st.just("difficulty_band"), low=st.floats(0, 0.4), high=st.floats(0.5, 1)),
    st.builds(rule, st.just("stale"), threshold=st.integers(0, 2)),
    st.builds(rule, st.just("oversample"), strength=st.floats(0, 5)),
    st.builds(rule, st.just("repetition"), n=st.integers(1, 3), scope=st.sampled_from(["rollout", "group"])),
)
CONFIGS = st.builds(
    FilteringConfig, rules=st.lists(ANY_RULE, max_size=4), advantage=st.sampled_from(get_args(Advantage))
)


@settings(max_examples=80, deadline=None)
@given(rows=ROLLOUTS, config=CONFIGS)
def test_the_ledger_holds_every_rollout_once_and_what_is_kept_trains(rows, config):
    rollouts = rollouts_of(rows)
    decided = decided_of(rows, config)
    ledger, trained = ledger_of(decided), trained_of(rollouts, decided)
    assert LedgerEntry.is_valid(ledger, cast=True) and Trajectory.is_valid(trained, cast=True)
    assert ledger["rollout_id"].to_list() == [f"r{index:03d}" for index in range(len(rows))]
    assert ledger.filter("kept")["rollout_id"].to_list() == trained["rollout_id"].to_list()
    assert ((ledger["rule"].cast(pl.String) == "kept") == ledger["kept"]).all()
    assert trained["advantage"].is_finite().all() and (trained["weight"] > 0).all()
    for (_, reward, _), why in zip(rows, ledger["rule"], strict=True):
        assert (reward is None) == (why == "incomplete")
    dropped = ledger.filter(~pl.col("kept"))
    assert dropped["value"].is_not_null().all()
    metrics = filter_metrics(decided)
    assert metrics["tokens_saved"] == metrics["tokens_generated"] - metrics["tokens_kept"]
    assert metrics["kept"] + sum(count for name, count in metrics.items() if name.startswith("dropped_")) == len(rows)


@settings(max_examples=50, deadline=None)
@given(rows=ROLLOUTS, config=st.builds(FilteringConfig, rules=st.lists(ANY_RULE, max_size=3)))
def test_dropping_rollouts_does_not_move_the_baseline_of_the_others(rows, config):
    for row in trained_of(rollouts_of(rows), decided_of(rows, config)).iter_rows(named=True):
        group = [reward for prompt, reward, _ in rows if f"p{prompt}" == row["group_id"] and reward is not None]
        assert row["advantage"] == pytest.approx(row["reward"] - np.mean(group), abs=1e-12)


BIAS = {0.05: 0.149, 0.1: 0.176, 0.2: 0.240, 0.3: 0.318, 0.5: 0.5, 0.9: 0.824}


@pytest.mark.parametrize(("p", "biased"), BIAS.items())
def test_a_baseline_of_surviving_groups_has_the_known_bias_and_ours_has_none(p, biased):
    """methods.md section 2: E[p_hat | 0 < R < G] = (p - p^G) / (1 - p^G - (1 - p)^G), at G = 8, over all outcomes."""
    n = 8
    rows = [(right, float(index < right), "stop") for right in range(n + 1) for index in range(n)]
    decided = decided_of(rows, rules("no_variance"))
    chance = np.array([comb(n, right) * p**right * (1 - p) ** (n - right) for right in range(n + 1)])
    weighed = decided.with_columns(chance=pl.Series(np.repeat(chance / n, n)))
    kept = weighed.filter("kept")
    surviving = (kept["reward"] * kept["chance"]).sum() / kept["chance"].sum()
    assert surviving == pytest.approx((p - p**n) / (1 - p**n - (1 - p) ** n), abs=1e-12)
    assert surviving == pytest.approx(biased, abs=5e-4)
    # What is reported is of all rollouts, and so unbiased.
    assert (weighed["graded"] * weighed["chance"]).sum() == pytest.approx(p, abs=1e-12)
    baseline = weighed["reward"] - weighed["advantage"]
    assert (baseline * weighed["chance"]).sum() == pytest.approx(p, abs=1e-12)


def test_a_baseline_of_the_kept_alone_is_an_option():
    """PODS' reference code: of rewards 0, 0.2, 0.3, 1 the kept extremes are compared with their own midpoint."""
    rows = [(0, reward, "stop") for reward in (0.0, 0.2, 0.3, 1.0)]
    both = [rule("max_variance", keep=2)]
    every = decided_of(rows, FilteringConfig(rules=both))
    assert every["kept"].to_list() == [True, False, False, True]
    assert every.filter("kept")["advantage"].to_list() == pytest.approx([-0.375, 0.625])
    survivors = decided_of(rows, FilteringConfig(rules=both, baseline="kept"))
    assert survivors.filter("kept")["advantage"].to_list() == [-0.5, 0.5]


def test_each_rule_writes_what_it_measured():
    rows = [
        (0, 0.5, "stop"),
        (0, 0.5, "stop"),
        (1, 0.0, "stop"),
        (1, 1.0, "length"),
        (1, None, "stop"),
        (2, 1.0, "abort"),
    ]
    decided = decided_of(rows, rules("aborted", "no_variance", "truncated"))
    assert ledger_of(decided)["rule"].to_list() == [
        "no_variance", "no_variance", "kept", "truncated", "incomplete", "aborted",
    ]  # fmt: skip
    dropped = ledger_of(decided).row(0, named=True)
    assert dropped["value"] == 0 and dropped["threshold"] == 1e-6
    metrics = filter_metrics(decided)
    assert metrics["kept"] == 1 and metrics["dropped_no_variance"] == 2
    # A group of one rollout has none either.
    assert metrics["groups"] == 3 and metrics["groups_without_variance"] == 2 and metrics["effective_groups"] == 1
    assert metrics["zero_variance_fraction"] == pytest.approx(2 / 3) and metrics["reward_mean"] == pytest.approx(0.6)
    assert metrics["tokens_generated"] == 18 and metrics["tokens_saved"] == 15


def test_pass_rates_are_the_judges_or_else_the_graders_of_all_rollouts():
    rows = [(0, 1.0, "stop"), (0, 1.0, "stop"), (1, 0.0, "stop"), (1, 1.0, "stop")]
    decided = decided_of(rows, rules("no_variance"))
    assert "pass_rate" not in filter_metrics(decided)
    assert filter_metrics(decided, 0.75)["pass_rate"] == 0.75
    judged = decided.with_columns(passed=pl.Series([False, False, False, True]))
    assert filter_metrics(judged, 0.75)["pass_rate"] == 0.25


def test_outputs_that_differ_in_case_and_blanks_alone_are_one():
    rows = [(index, 0.5, "stop") for index in range(4)]
    decided = decided_of(rows, rules(), texts=["So it is.", " so  it is.\n", "So it isn't.", "so it isn't."])
    assert filter_metrics(decided)["distinct_fraction"] == 0.5


def test_a_threshold_of_ones_own():
    rows = [(0, 0.4, "stop"), (0, 0.6, "stop"), (1, 0.0, "stop"), (1, 1.0, "stop")]
    ledger = ledger_of(decided_of(rows, FilteringConfig(rules=[rule("no_variance", threshold=0.2)])))
    assert ledger["kept"].to_list() == [False, False, True, True]
    assert ledger["value"][0] == pytest.approx(0.1)
    assert ledger["threshold"][0] == 0.2


def test_rewards_of_other_rollouts_and_greedy_sampling_are_refused():
    rows = [(0, 0.0, "stop"), (0, 1.0, "stop")]
    with pytest.raises(InputError, match="temperature 0"):
        trained_of(rollouts_of(rows, temperature=0), decided_of(rows, FilteringConfig()))
    with pytest.raises(InputError, match="reward of r001: no such rollout"):
        decide([rollouts_of(rows).head(1)], Graded(rewards_of(rows).lazy()), FilteringConfig())
    twice = pl.concat([rewards_of(rows), rewards_of(rows)])
    with pytest.raises(InputError, match="several rows of reward for one rollout"):
        decide([rollouts_of(rows)], Graded(twice.lazy()), FilteringConfig())
    with pytest.raises(StageFailed, match="in another order"):
        trained_of(rollouts_of(rows).reverse(), decided_of(rows, FilteringConfig()))


def test_rewards_may_come_in_another_order_and_lack_some():
    rows = [(0, 0.0, "stop"), (0, 1.0, "stop"), (0, 0.5, "stop")]
    rewards = rewards_of(rows).reverse().head(2)
    decided = decided_of(rows, FilteringConfig(), rewards=rewards)
    assert decided["reward"].to_list() == [None, 1.0, 0.5]
    assert decided["rule"].to_list() == ["incomplete", "kept", "kept"]
    assert decided["advantage"].to_list()[1:] == [0.25, -0.25]


def test_without_rollouts_there_is_nothing_to_decide():
    decided = decide([], Graded(rewards_of([(0, 1.0, "stop")]).head(0).lazy()), FilteringConfig())
    assert decided.is_empty() and filter_metrics(decided)["kept_fraction"] == 0
    nothing_graded = decided_of([(0, None, "stop")], rules("aborted", "no_variance", "redundant_in_group"))
    assert nothing_graded["rule"].to_list() == ["incomplete"]


def test_the_overlong_punishment_comes_before_the_advantage():
    """DAPO, equation 13: of two equal answers the one in the buffer is worse, the one at the limit by a whole point."""
    rows = [(0, 1.0, "stop"), (0, 1.0, "stop"), (0, 1.0, "length"), (0, 0.0, "stop")]
    tokens = [[1] * 8, [1] * 14, [1] * 16, [1] * 8]
    config = FilteringConfig(overlong=OverlongConfig(max_tokens=16, buffer_tokens=4))
    decided = decided_of(rows, config, tokens=tokens)
    assert decided["reward"].to_list() == [1.0, 0.5, 0.0, 0.0]
    assert decided["advantage"].to_list() == [0.625, 0.125, -0.375, -0.375]
    assert decided["kept"].all() and filter_metrics(decided)["reward_mean"] == 0.75


def test_an_even_group_is_discarded_though_its_answers_differ_in_length():
    """DAPO's condition is on what was graded, 0 < correct < n: length alone teaches nothing."""
    rows, tokens = [(0, 0.0, "stop"), (0, 0.0, "length")], [[1] * 8, [1] * 16]
    config = FilteringConfig(overlong=OverlongConfig(max_tokens=16, buffer_tokens=4))
    assert decided_of(rows, config, tokens=tokens)["rule"].to_list() == ["no_variance"] * 2


def test_components_are_normalised_before_they_are_added():
    """GDPO: two graders of very different scale count alike, by their weights; a missing weight is 1."""
    rows = [(0, 0.0, "stop")] * 4
    scores = [(0.0, 1000.0), (1.0, 0.0), (0.0, 0.0), (1.0, 1000.0)]
    components = [[{"name": "small", "value": a}, {"name": "large", "value": b}] for a, b in scores]
    graded = rewards_of(rows).with_columns(components=pl.Series(components, dtype=COMPONENTS))
    config = FilteringConfig(rules=[], advantage="per_component")
    even = decided_of(rows, config, rewards=graded)["advantage"].to_numpy()
    np.testing.assert_allclose(even, np.array([0, 0, -1, 1]) * np.sqrt(1.5), atol=1e-4)
    config = FilteringConfig(rules=[], advantage="per_component", component_weights={"large": 0.0})
    only_small = decided_of(rows, config, rewards=graded)["advantage"].to_numpy()
    np.testing.assert_allclose(only_small, np.array([-1, 1, -1, 1]) * np.sqrt(0.75), atol=1e-4)


def test_what_the_judges_said_reaches_the_trajectories():
    rows = [(0, 0.1, "stop"), (0, 0.9, "stop")]
    rewards = rewards_of(rows).with_columns(passed=pl.Series([False, True]))
    decided = decided_of(rows, FilteringConfig(), rewards=rewards)
    assert trained_of(rollouts_of(rows), decided)["passed"].to_list() == [False, True]


def test_only_the_majoritys_answers_train_and_the_ledger_says_so():
    rows = [(0, 0.2, "stop"), (0, 0.9, "stop"), (0, 0.4, "stop"), (1, 0.5, "stop")]
    votes = [1.0, 1.0, 0.0, None]
    components = [
        [{"name": "other", "value": 1.0}, *([] if vote is None else [{"name": "votes", "value": vote}])]
        for vote in votes
    ]
    graded = rewards_of(rows).with_columns(components=pl.Series(components, dtype=COMPONENTS))
    config = FilteringConfig(rules=[rule("majority_only", grader="votes")], advantage="positive_reward")
    decided = decided_of(rows, config, rewards=graded)
    assert ledger_of(decided).select("rule", "value", "threshold").rows() == [
        ("kept", None, None), ("kept", None, None), ("majority_only", 0.0, 0.5), ("majority_only", 0.0, 0.5),
    ]  # fmt: skip
    assert trained_of(rollouts_of(rows), decided)["advantage"].to_list() == [0.2, 0.9]


def test_best_of_n_keeps_the_best_of_each_group():
    rows = [(0, 0.2, "stop"), (0, 0.9, "stop"), (0, 0.9, "stop"), (1, None, "stop"), (1, 0.1, "stop")]
    best = decided_of(rows, rules("best_only"))
    assert best["rule"].to_list() == ["best_only", "kept", "best_only", "incomplete", "kept"]
    assert best["value"].to_list()[:3] == [3, None, 2]
    two = decided_of(rows, FilteringConfig(rules=[rule("best_only", threshold=2)]))
    assert two["kept"].to_list() == [False, True, True, False, True]
