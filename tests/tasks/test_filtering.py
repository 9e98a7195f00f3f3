"""The filter: the ledger is complete, the baseline unbiased by what is dropped, the advantages those of the group."""

import time
from typing import get_args

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import InputError
from storage.records import LedgerEntry, Trajectory
from tasks.filtering.config import Advantage, FilteringConfig, OverlongConfig, RuleConfig
from tasks.filtering.trajectories import decide, filter_metrics, ledger_of, trajectories_of

ROLLOUTS = st.lists(
    st.tuples(
        st.integers(0, 4), st.sampled_from([0.0, 0.25, 0.5, 1.0, None]), st.sampled_from(["stop", "length", "abort"])
    ),
    min_size=1,
    max_size=40,
)
COMPONENTS = pl.List(pl.Struct({"name": pl.String, "value": pl.Float64}))
CONFIGS = st.builds(
    FilteringConfig,
    rules=st.lists(
        st.builds(
            RuleConfig,
            rule=st.sampled_from(["no_variance", "truncated", "aborted", "majority_only", "best_only"]),
            grader=st.just("a"),
        ),
        max_size=3,
    ),
    advantage=st.sampled_from(get_args(Advantage)),
)


def frames(rows: list[tuple], temperature: float = 1.0) -> tuple[pl.LazyFrame, pl.LazyFrame]:
    """Rollouts and rewards of (prompt, reward or None, finish_reason)."""
    ids = [f"r{index:03d}" for index in range(len(rows))]
    prompts, rewards, reasons = zip(*rows, strict=True)
    rollouts = pl.DataFrame(
        {
            "rollout_id": ids,
            "prompt_id": [f"p{prompt}" for prompt in prompts],
            "iteration": 3,
            "policy_id": "policy",
            "prompt_token_ids": [[1, 2]] * len(rows),
            "token_ids": [[3, 4, 5]] * len(rows),
            "logprobs": [[-0.1, -0.2, -0.3]] * len(rows),
            "finish_reason": reasons,
            "sampling": f'{{"temperature": {temperature}, "top_p": 1.0}}',
        },
    ).cast({"prompt_token_ids": pl.List(pl.Int32), "token_ids": pl.List(pl.Int32), "logprobs": pl.List(pl.Float32)})
    graded = pl.DataFrame(
        {
            "rollout_id": ids,
            "reward": pl.Series(rewards, dtype=pl.Float64),
            "complete": [r is not None for r in rewards],
            "components": [[] if r is None else [{"name": "a", "value": r}] for r in rewards],
            "passed": None,
        },
        schema_overrides={"components": COMPONENTS, "passed": pl.Boolean},
    )
    return rollouts.lazy(), graded.lazy()


@settings(max_examples=150, deadline=None)
@given(rows=ROLLOUTS, config=CONFIGS)
def test_the_ledger_holds_every_rollout_once_and_what_is_kept_trains(rows, config):
    rollouts, rewards = frames(rows)
    decided = decide(rollouts, rewards, config)
    ledger, trained = ledger_of(decided), trajectories_of(rollouts, decided, iteration=4)
    assert LedgerEntry.is_valid(ledger) and Trajectory.is_valid(trained, cast=True)
    assert ledger["rollout_id"].to_list() == [f"r{index:03d}" for index in range(len(rows))]
    assert ledger.filter("kept")["rollout_id"].to_list() == trained["rollout_id"].to_list()
    assert ((ledger["rule"] == "kept") == ledger["kept"]).all()
    assert trained["advantage"].is_finite().all()
    assert set(trained["age"]) <= {1}
    for (_, reward, _), rule in zip(rows, ledger["rule"], strict=True):
        assert (reward is None) == (rule == "incomplete")


@settings(max_examples=100, deadline=None)
@given(rows=ROLLOUTS)
def test_dropping_rollouts_does_not_move_the_baseline_of_the_others(rows):
    rollouts, rewards = frames(rows)
    config = FilteringConfig(rules=[RuleConfig(rule="truncated")])
    trained = trajectories_of(rollouts, decide(rollouts, rewards, config), 3)
    for row in trained.iter_rows(named=True):
        group = [reward for prompt, reward, _ in rows if f"p{prompt}" == row["group_id"] and reward is not None]
        assert row["advantage"] == pytest.approx(row["reward"] - np.mean(group), abs=1e-12)


def test_each_rule_writes_what_it_measured():
    rows = [
        (0, 0.5, "stop"),
        (0, 0.5, "stop"),
        (1, 0.0, "stop"),
        (1, 1.0, "length"),
        (1, None, "stop"),
        (2, 1.0, "abort"),
    ]
    rollouts, rewards = frames(rows)
    config = FilteringConfig(rules=[RuleConfig(rule=rule) for rule in ("aborted", "no_variance", "truncated")])
    decided = decide(rollouts, rewards, config)
    assert ledger_of(decided)["rule"].to_list() == [
        "no_variance", "no_variance", "kept", "truncated", "incomplete", "aborted",
    ]  # fmt: skip
    dropped = ledger_of(decided).row(0, named=True)
    assert dropped["value"] == 0 and dropped["threshold"] == 1e-6
    metrics = filter_metrics(decided)
    assert metrics["kept"] == 1 and metrics["groups_without_variance"] == 1 and metrics["dropped_no_variance"] == 2


def test_a_threshold_of_ones_own():
    rollouts, rewards = frames([(0, 0.4, "stop"), (0, 0.6, "stop"), (1, 0.0, "stop"), (1, 1.0, "stop")])
    config = FilteringConfig(rules=[RuleConfig(rule="no_variance", threshold=0.2)])
    ledger = ledger_of(decide(rollouts, rewards, config))
    assert ledger["kept"].to_list() == [False, False, True, True]
    assert ledger["value"][0] == pytest.approx(0.1)
    assert ledger["threshold"][0] == 0.2


def test_rewards_of_other_rollouts_and_greedy_sampling_are_refused():
    rollouts, rewards = frames([(0, 0.0, "stop"), (0, 1.0, "stop")], temperature=0)
    with pytest.raises(InputError, match="temperature 0"):
        trajectories_of(rollouts, decide(rollouts, rewards, FilteringConfig()), 3)
    with pytest.raises(InputError, match="reward of r001: no such rollout"):
        decide(rollouts.head(1), rewards, FilteringConfig())


def test_a_hundred_and_sixty_thousand_rollouts_take_seconds():
    random = np.random.default_rng(0)
    rewards = random.choice([0.0, 0.5, 1.0], 160_000)
    rollouts, graded = frames([(index // 8, reward, "stop") for index, reward in enumerate(rewards)])
    started = time.perf_counter()
    decided = decide(rollouts, graded, FilteringConfig())
    trained = trajectories_of(rollouts, decided, 3)
    assert time.perf_counter() - started < 10
    assert len(ledger_of(decided)) == 160_000 > len(trained) > 150_000


def test_the_overlong_punishment_comes_before_the_advantage():
    """DAPO, equation 13: of two equal answers the one in the buffer is worse, the one at the limit by a whole point."""
    rollouts, rewards = frames([(0, 1.0, "stop"), (0, 1.0, "stop"), (0, 1.0, "length"), (0, 0.0, "stop")])
    tokens = pl.Series([[1] * 8, [1] * 14, [1] * 16, [1] * 8], dtype=pl.List(pl.Int32))
    lengths = rollouts.with_columns(token_ids=tokens)
    config = FilteringConfig(overlong=OverlongConfig(max_tokens=16, buffer_tokens=4))
    decided = decide(lengths, rewards, config)
    assert decided["reward"].to_list() == [1.0, 0.5, 0.0, 0.0]
    assert decided["advantage"].to_list() == [0.625, 0.125, -0.375, -0.375]
    assert decided["kept"].all()


def test_an_even_group_is_discarded_though_its_answers_differ_in_length():
    """DAPO's condition is on what was graded, 0 < correct < n: length alone teaches nothing."""
    rollouts, rewards = frames([(0, 0.0, "stop"), (0, 0.0, "length")])
    lengths = rollouts.with_columns(token_ids=pl.Series([[1] * 8, [1] * 16], dtype=pl.List(pl.Int32)))
    decided = decide(lengths, rewards, FilteringConfig(overlong=OverlongConfig(max_tokens=16, buffer_tokens=4)))
    assert decided["rule"].to_list() == ["no_variance"] * 2


def test_components_are_normalised_before_they_are_added():
    """GDPO: two graders of very different scale count alike, by their weights; a missing weight is 1."""
    rollouts, rewards = frames([(0, 0.0, "stop")] * 4)
    scores = [(0.0, 1000.0), (1.0, 0.0), (0.0, 0.0), (1.0, 1000.0)]
    components = [[{"name": "small", "value": a}, {"name": "large", "value": b}] for a, b in scores]
    graded = rewards.with_columns(components=pl.Series(components, dtype=COMPONENTS))
    even = decide(rollouts, graded, FilteringConfig(rules=[], advantage="per_component"))["advantage"].to_numpy()
    np.testing.assert_allclose(even, np.array([0, 0, -1, 1]) * np.sqrt(1.5), atol=1e-4)
    config = FilteringConfig(rules=[], advantage="per_component", component_weights={"large": 0.0})
    only_small = decide(rollouts, graded, config)["advantage"].to_numpy()
    np.testing.assert_allclose(only_small, np.array([-1, 1, -1, 1]) * np.sqrt(0.75), atol=1e-4)


def test_what_the_judges_said_reaches_the_trajectories():
    rollouts, rewards = frames([(0, 0.1, "stop"), (0, 0.9, "stop")])
    decided = decide(rollouts, rewards.with_columns(passed=pl.Series([False, True])), FilteringConfig())
    assert trajectories_of(rollouts, decided, 3)["passed"].to_list() == [False, True]


def test_only_the_majoritys_answers_train_and_the_ledger_says_so():
    rollouts, rewards = frames([(0, 0.2, "stop"), (0, 0.9, "stop"), (0, 0.4, "stop"), (1, 0.5, "stop")])
    votes = [1.0, 1.0, 0.0, None]
    components = [
        [{"name": "other", "value": 1.0}, *([] if vote is None else [{"name": "votes", "value": vote}])]
        for vote in votes
    ]
    graded = rewards.with_columns(components=pl.Series(components, dtype=COMPONENTS))
    config = FilteringConfig(rules=[RuleConfig(rule="majority_only", grader="votes")], advantage="positive_reward")
    decided = decide(rollouts, graded, config)
    assert ledger_of(decided).select("rule", "value", "threshold").rows() == [
        ("kept", None, None), ("kept", None, None), ("majority_only", 0.0, 0.5), ("majority_only", 0.0, 0.5),
    ]  # fmt: skip
    assert trajectories_of(rollouts, decided, 3)["advantage"].to_list() == [0.2, 0.9]


def test_best_of_n_keeps_the_best_of_each_group():
    rows = [(0, 0.2, "stop"), (0, 0.9, "stop"), (0, 0.9, "stop"), (1, None, "stop"), (1, 0.1, "stop")]
    rollouts, rewards = frames(rows)
    best = decide(rollouts, rewards, FilteringConfig(rules=[RuleConfig(rule="best_only")]))
    assert best["rule"].to_list() == ["best_only", "kept", "best_only", "incomplete", "kept"]
    assert best["value"].to_list()[:3] == [3, None, 2]
    two = decide(rollouts, rewards, FilteringConfig(rules=[RuleConfig(rule="best_only", threshold=2)]))
    assert two["kept"].to_list() == [False, True, True, False, True]
