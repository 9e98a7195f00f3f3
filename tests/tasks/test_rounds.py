"""Rounds, the pure part: who goes on, which prompts follow, how rounds become one batch, and what screening biases."""

import itertools
import math

import numpy as np
import polars as pl
import pytest
from graded_rollouts import batch_rows, rollout_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import InputError
from storage.records import BatchEntry, Prompt, PromptUse, SampledBefore
from tasks._engines.protocol import Completion, SamplingParams
from tasks.rollouts.rounds import Feed, in_order, joined_metrics, turns_of
from tasks.rollouts.table import rollout_rows as sampled_rows
from tasks.select.config import SelectConfig
from tasks.select.draw import draw
from tasks.select.rounds import Survival, draw_more, first_samples, join_batches, prompts_wanted, rest_of
from tasks.select.rounds_config import DrawMoreConfig, RefillConfig

TOLERANCE = 1e-6
REWARDS = st.lists(st.sampled_from([0.0, 0.25, 1.0, None]), min_size=1, max_size=4)


def rewards_of(groups):
    """`prompt_id, reward` of the complete ones among the groups' rewards."""
    rows = [(f"p{place}", reward) for place, group in enumerate(groups) for reward in group if reward is not None]
    return pl.DataFrame(rows, schema={"prompt_id": pl.String, "reward": pl.Float64}, orient="row")


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(REWARDS, st.integers(1, 9)), min_size=1, max_size=12), st.integers(2, 5))
def test_only_prompts_whose_first_rewards_vary_go_on_and_get_what_they_lack(groups, samples):
    batch = batch_rows(len(groups)).with_columns(pl.Series("samples", [n for _, n in groups], dtype=pl.Int32))
    first = first_samples(batch, samples)
    assert first["samples"].to_list() == [min(n, samples) for _, n in groups]
    rest = rest_of(batch, first, rewards_of([rewards for rewards, _ in groups]), TOLERANCE)
    assert BatchEntry.is_valid(rest.batch) and SampledBefore.is_valid(rest.sampled_before)
    lacking = {f"p{place}": n - samples for place, (_, n) in enumerate(groups) if n > samples}
    vary = {f"p{place}" for place, (rewards, _) in enumerate(groups) if len({*rewards} - {None}) > 1}
    assert dict(rest.batch.select("prompt_id", "samples").iter_rows()) == {
        name: n for name, n in lacking.items() if name in vary
    }
    assert rest.batch["position"].to_list() == list(range(len(rest.batch)))
    assert rest.sampled_before["prompt_id"].to_list() == rest.batch["prompt_id"].to_list()
    assert set(rest.sampled_before["samples"]) <= {samples}
    assert rest.screened_out == len(lacking.keys() - vary)
    assert rest.rollouts_saved == sum(n for name, n in lacking.items() if name not in vary)
    joined = join_batches([first, rest.batch])
    assert BatchEntry.is_valid(joined)
    assert joined["prompt_id"].to_list() == batch["prompt_id"].to_list()
    assert joined["samples"].sum() == batch["samples"].sum() - rest.rollouts_saved


def going_on(first: int, rest: int):
    """Each outcome of the first samples as a prompt's: its number of right ones, and whether it goes on."""
    outcomes = list(itertools.product([0.0, 1.0], repeat=first))
    batch = batch_rows(len(outcomes), samples=first + rest)
    chosen = rest_of(batch, first_samples(batch, first), rewards_of(outcomes), TOLERANCE).batch["prompt_id"].to_list()
    return [(int(sum(outcome)), f"p{place}" in set(chosen)) for place, outcome in enumerate(outcomes)]


# E[p_hat | S] = (p - p^G) / (1 - p^G - (1-p)^G), methods.md section 2 (arXiv 2601.08521, theorem 1), G = 8.
@pytest.mark.parametrize(
    ("p", "expected"), [(0.05, 0.149), (0.1, 0.176), (0.2, 0.240), (0.3, 0.318), (0.5, 0.5), (0.9, 0.824)]
)
def test_the_first_samples_of_those_that_go_on_are_biased_by_the_closed_form(p, expected):
    first, rest = 8, 8
    weighed = [(right / first, goes_on, p**right * (1 - p) ** (first - right)) for right, goes_on in going_on(8, rest)]
    share = math.fsum(weight for _, goes_on, weight in weighed if goes_on)
    biased = math.fsum(rate * weight for rate, goes_on, weight in weighed if goes_on) / share
    assert share == pytest.approx(1 - p**first - (1 - p) ** first)
    assert biased == pytest.approx((p - p**first) / share) and biased == pytest.approx(expected, abs=5e-4)
    # Round one over all prompts is unbiased; a group of both goes is drawn back to p by its unbiased second part.
    assert math.fsum(rate * weight for rate, _, weight in weighed) == pytest.approx(p)
    of_both = (first * biased + rest * p) / (first + rest)
    assert abs(of_both - p) == pytest.approx(abs(biased - p) * first / (first + rest))


# What deployments/rounds.md says of four samples first, twelve after.
@pytest.mark.parametrize(
    ("p", "share", "of_first", "of_both"),
    [(0.1, 0.344, 0.291, 0.148), (0.2, 0.589, 0.337, 0.234), (0.3, 0.752, 0.388, 0.322), (0.5, 0.875, 0.5, 0.5)],
)
def test_the_numbers_of_the_page(p, share, of_first, of_both):
    outcomes = [(right / 4, p**right * (1 - p) ** (4 - right)) for right, goes_on in going_on(4, 12) if goes_on]
    goes_on = math.fsum(weight for _, weight in outcomes)
    biased = math.fsum(rate * weight for rate, weight in outcomes) / goes_on
    assert (goes_on, biased, (4 * biased + 12 * p) / 16) == pytest.approx((share, of_first, of_both), abs=6e-4)


@pytest.mark.parametrize(
    ("stand", "pool", "most", "wanted"),
    [
        (Survival(1, 32, 16), 1000, 32, 0),  # enough survive
        (Survival(1, 32, 20), 1000, 32, 0),
        (Survival(3, 96, 2), 1000, 32, 0),  # the last round was this one
        (Survival(1, 32, 8), 1000, 32, 32),  # 8 more at a share of 1/4: 32 prompts
        (Survival(1, 32, 12), 1000, 32, 11),  # 4 more at 3/8: 10.7
        (Survival(1, 32, 15), 1000, 32, 3),
        (Survival(1, 32, 8), 1000, 20, 20),  # at most as many as a round may draw
        (Survival(1, 32, 0), 1000, 32, 32),  # none: nothing to go by
        (Survival(1, 32, 8), 40, 32, 8),  # what the pool still has
        (Survival(2, 40, 8), 40, 32, 0),
    ],
)
def test_a_round_draws_what_is_missing_within_its_bounds(stand, pool, most, wanted):
    assert prompts_wanted(stand, pool, most, RefillConfig(groups=16, max_rounds=3)) == wanted


def pool_of(size: int) -> pl.DataFrame:
    rows = [
        {
            "prompt_id": f"p{index:03d}",
            "messages": [{"role": "user", "content": f"Question {index}"}],
            "verifier": {"name": "haiku", "params": "{}"},
            "domain": "",
            "tags": [],
            "source": f"here:{index}",
            "split": "train",
            "cluster_id": f"p{index:03d}",
        }
        for index in range(size)
    ]
    return pl.DataFrame(rows, schema=Prompt.create_empty().schema)


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 20), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 2))
def test_later_rounds_draw_other_prompts_and_count_in_the_history(size, more, nights):
    prompts, select = pool_of(size), SelectConfig(prompts_per_iteration=4)
    history = None
    for night in range(1, nights + 1):
        _, history = draw(prompts, history, select, night, seed=night)
    before = 4 * nights
    batch, history = draw(prompts, history, select, nights + 1, seed=0)
    drawn = batch["prompt_id"].to_list()
    for number, wanted in enumerate(more, 2):
        wanted = min(wanted, size - len(drawn))
        if wanted == 0:
            break
        config = DrawMoreConfig(select=select, prompts=wanted)
        batch, history = draw_more(prompts, history, pl.DataFrame({"prompt_id": drawn}), config, seed=number)
        assert len(batch) == wanted and BatchEntry.is_valid(batch) and PromptUse.is_valid(history)
        drawn += batch["prompt_id"].to_list()
    assert len(set(drawn)) == len(drawn)
    assert sorted(history["prompt_id"]) == sorted(prompts["prompt_id"])
    assert history["times_drawn"].sum() == before + len(drawn)
    # All of them are draws of one night: the next one is the one after it.
    assert set(history.filter(pl.col("prompt_id").is_in(drawn))["last_iteration"]) == {nights + 1}


def sampled(batch: pl.DataFrame, sampled_before: dict[str, int]) -> pl.DataFrame:
    """Rollouts of a batch, in its order, their samples counted on."""
    rows = [
        (prompt_id, index)
        for prompt_id, samples in batch.select("prompt_id", "samples").iter_rows()
        for index in range(sampled_before.get(prompt_id, 0), sampled_before.get(prompt_id, 0) + samples)
    ]
    rollouts = rollout_rows([(prompt_id, f"{prompt_id} {index}") for prompt_id, index in rows])
    return rollouts.with_columns(
        pl.Series("sample_index", [index for _, index in rows], dtype=pl.Int32),
        pl.Series("rollout_id", [f"{prompt_id}-{index}" for prompt_id, index in rows]),
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=9),
    st.integers(0, 4),
    st.integers(1, 12),
)
def test_joined_rollouts_lie_as_if_sampled_at_once(groups, later, rows):
    """`groups`: first and further samples of round one's prompts; `later`: prompts of a second round."""
    every = batch_rows(len(groups) + later, samples=2)
    first = every[: len(groups)].with_columns(pl.Series("samples", [n for n, _ in groups], dtype=pl.Int32))
    more = pl.Series("samples", [n for _, n in groups], dtype=pl.Int32)
    rest = first.with_columns(more).filter(pl.col("samples") > 0)
    second = every[len(groups) :]
    batches = [part for part in (first, rest, second) if len(part)]
    before = {f"p{place}": n for place, (n, _) in enumerate(groups)}
    parts = [sampled(first, {})]
    parts += [sampled(rest, before)] if len(rest) else []
    parts += [sampled(second, {})] if later else []
    joined = join_batches(batches)
    feeds = [Feed(part.iter_slices(3)) for part in parts]
    frames = []
    for counts in turns_of(joined, batches, rows):
        pieces = [piece for feed, count in zip(feeds, counts, strict=True) for piece in feed.take(count)]
        frames.append(in_order(pl.concat(pieces), joined))
    assert pl.concat(frames).equals(sampled(joined, {}).select(frames[0].columns))


def test_rounds_that_dont_belong_together_are_refused():
    batch = batch_rows(3, samples=2)
    with pytest.raises(InputError, match="don't add up"):
        list(turns_of(batch, [batch[:2]], 10))
    with pytest.raises(InputError, match="in the joined batch's order"):
        list(turns_of(batch, [batch.reverse()], 10))
    with pytest.raises(InputError, match="in the joined batch's order"):
        list(turns_of(batch[:2], [batch], 10))
    with pytest.raises(InputError, match="2 rollouts less"):
        Feed(iter([sampled(batch, {})])).take(8)
    gap = sampled(batch, {"p1": 4})
    with pytest.raises(InputError, match=r"p1-4: sample 4 of prompt p1 doesn't follow"):
        in_order(gap, batch)


def test_samples_are_counted_on_and_their_ids_differ_even_with_one_seed():
    batch = batch_rows(2, samples=2)
    completions = [[Completion((1,), (0.0,), "a", "stop")] * 2] * 2
    fixed = dict(sampling=SamplingParams(8), engine="e", policy_id="p", iteration=1, seed=5)
    first = sampled_rows(batch, [[1], [1]], completions, **fixed)
    rest = sampled_rows(batch, [[1], [1]], completions, first_indices=[2, 4], **fixed)
    assert first["sample_index"].to_list() == [0, 1, 0, 1]
    assert rest["sample_index"].to_list() == [2, 3, 4, 5]
    assert pl.concat([first, rest])["rollout_id"].is_unique().all()


def test_metrics_of_all_rounds_are_those_of_one_batch():
    parts = [
        {"rollouts": 4.0, "tokens": 40.0, "engine_seconds": 2.0, "truncated_fraction": 0.5},
        {"rollouts": 12.0, "tokens": 60.0, "engine_seconds": 3.0, "truncated_fraction": 0.0},
    ]
    assert joined_metrics(parts) == {
        "rollouts": 16.0,
        "tokens": 100.0,
        "engine_seconds": 5.0,
        "tokens_per_s": 20.0,
        "length_mean": 6.25,
        "truncated_fraction": 0.125,
    }


def test_a_group_without_two_rewards_is_not_taken_to_vary():
    batch = batch_rows(3, samples=8)
    rest = rest_of(batch, first_samples(batch, 4), rewards_of([[None] * 4, [1.0, None, None, None], [0.0, 1.0]]), 0.0)
    assert rest.batch["prompt_id"].to_list() == ["p2"]
    assert (rest.screened_out, rest.rollouts_saved) == (2, 8)
    assert np.isclose(rest.batch["samples"].sum(), 4)
