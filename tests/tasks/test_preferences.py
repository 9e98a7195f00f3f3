"""Pairs from graded groups: wide margins, different texts, no cluster on both sides."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import InputError
from storage.records import BatchEntry, Preference
from tasks.preferences.config import PreferencesConfig
from tasks.preferences.pairs import held_out_clusters, pair_metrics, pairs_of

ANSWERS = st.lists(
    st.tuples(st.integers(0, 7), st.sampled_from("abcdef"), st.sampled_from([0.0, 0.05, 0.3, 0.6, 1.0, None])),
    min_size=1,
    max_size=40,
)


def frames(answers: list[tuple]) -> tuple[pl.LazyFrame, pl.LazyFrame, pl.LazyFrame]:
    """Rollouts, rewards and the batch of (prompt, text, reward or None); two prompts share a cluster."""
    ids = [f"r{index:03d}" for index in range(len(answers))]
    prompts, texts, rewards = zip(*answers, strict=True)
    rollouts = pl.DataFrame({"rollout_id": ids, "prompt_id": [f"p{prompt}" for prompt in prompts], "text": texts})
    graded = pl.DataFrame(
        {
            "rollout_id": ids,
            "reward": pl.Series(rewards, dtype=pl.Float64),
            "complete": [r is not None for r in rewards],
        }
    )
    rows = [
        {
            "prompt_id": f"p{prompt}",
            "messages": [{"role": "user", "content": f"Question {prompt}"}],
            "cluster_id": f"c{prompt // 2}",
        }
        for prompt in sorted(set(prompts))
    ]
    schema = BatchEntry.create_empty().select("prompt_id", "messages", "cluster_id").schema
    return rollouts.lazy(), graded.lazy(), pl.DataFrame(rows, schema=schema).lazy()


@settings(max_examples=150, deadline=None)
@given(answers=ANSWERS, per_prompt=st.integers(1, 5), seed=st.integers(0, 3))
def test_what_holds_for_every_set_of_pairs(answers, per_prompt, seed):
    config = PreferencesConfig(min_margin=0.1, pairs_per_prompt=per_prompt, eval_fraction=0.3)
    pairs = pairs_of(*frames(answers), config, seed)
    assert Preference.is_valid(pairs)
    rewards = {f"r{index:03d}": reward for index, (_, _, reward) in enumerate(answers)}
    for row in pairs.iter_rows(named=True):
        assert row["strength"] == pytest.approx(rewards[row["chosen_rollout_id"]] - rewards[row["rejected_rollout_id"]])
        assert row["strength"] >= 0.1
        assert row["chosen"] != row["rejected"]
        assert row["messages"][0]["content"] == f"Question {row['prompt_id'][1:]}"
    assert pairs.is_empty() or pairs.group_by("prompt_id").len()["len"].to_numpy().max() <= per_prompt
    sides = pairs.group_by("cluster_id").agg(pl.col("split").n_unique())
    assert set(sides["split"]) <= {1}
    if pairs["cluster_id"].n_unique() > 1:
        assert pairs["split"].n_unique() == 2


def test_the_widest_margins_are_taken():
    answers = [(0, "a", 0.0), (0, "b", 0.5), (0, "c", 1.0), (0, "d", None), (0, "c", 0.2)]
    pairs = pairs_of(*frames(answers), PreferencesConfig(pairs_per_prompt=2), seed=0)
    found = pairs.select("chosen", "rejected", "strength").rows()
    assert found == [("c", "a", 1.0), ("b", "a", 0.5)] or found == [("c", "a", 1.0), ("c", "b", 0.5)]
    assert pair_metrics(pairs)["margin_mean"] == pytest.approx(0.75)


@given(clusters=st.sets(st.integers(0, 200), min_size=2), extra=st.sets(st.integers(201, 300)), seed=st.integers(0, 9))
def test_a_cluster_stays_on_its_side_in_later_iterations(clusters, extra, seed):
    names = [f"c{number}" for number in clusters]
    both = held_out_clusters([*names, *(f"c{number}" for number in extra)], 0.3, seed)
    alone = held_out_clusters(names, 0.3, seed)
    assert len(alone) < len(names)
    if 1 < len(alone) < len(names) - 1:
        assert set(alone) == set(both) & set(names)


def test_no_pair_is_an_empty_table():
    pairs = pairs_of(*frames([(0, "a", 0.5), (0, "b", 0.5)]), PreferencesConfig(), seed=0)
    assert Preference.is_valid(pairs)
    assert pair_metrics(pairs) == {"pairs": 0, "eval_pairs": 0, "prompts": 0}


def test_a_batch_of_other_prompts_is_refused():
    rollouts, rewards, batch = frames([(0, "a", 0.5), (1, "b", 0.5)])
    with pytest.raises(InputError, match="not in the batch"):
        pairs_of(rollouts, rewards, batch.head(1), PreferencesConfig(), seed=0)
