"""Which prompts a strategy draws: what it says it prefers, by the seed alone, and the shares beside it."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from storage.records import PromptUse
from tasks._maths.posteriors import Beta, update_beta
from tasks.select.choose import choose, first_places
from tasks.select.config import SelectConfig
from tasks.select.draw import draw_prompts, known_of, starting_rates
from tasks.select.history_config import HistoryConfig
from tasks.select.strategies import Rates

NAMES = ["uniform", "thompson", "variance", "band", "greso"]


def pool(size: int) -> pl.DataFrame:
    return pl.DataFrame({"prompt_id": [f"p{place:05d}" for place in range(size)], "split": "train"})


def history_of(rows: list[dict]) -> pl.DataFrame:
    """A row per prompt; what isn't given is a prompt drawn once whose outcomes are unknown."""
    usual = dict.fromkeys(PromptUse.column_names()) | {"times_drawn": 1, "last_iteration": 1}
    full = [usual | {"prompt_id": f"p{place:05d}"} | row for place, row in enumerate(rows)]
    return PromptUse.validate(pl.DataFrame(full, schema=PromptUse.create_empty().schema))


def rated(*pairs: tuple[float, float], **more) -> pl.DataFrame:
    return history_of([{"alpha": alpha, "beta": beta, "last_outcome": 1, **more} for alpha, beta in pairs])


def drawn(history: pl.DataFrame, count: int, seed: int = 0, rates: Rates | None = None, **select) -> list[int]:
    config = SelectConfig.model_validate({"prompts_per_iteration": count} | select)
    found = draw_prompts(pool(len(history)), history, config, 2, seed, rates)
    return [int(prompt_id[1:]) for prompt_id in found.drawn["prompt_id"]]


def times_drawn(history: pl.DataFrame, seeds: int, rates: Rates | None = None, **select) -> np.ndarray:
    """How often each prompt is the one that is drawn, over that many seeds."""
    config = SelectConfig.model_validate({"prompts_per_iteration": 1} | select)
    known = known_of(history, config.history, 2, rates or starting_rates(config))
    taken = [int(choose(known, config, seed).places[0]) for seed in range(seeds)]
    return np.bincount(taken, minlength=len(history))


def assert_in_proportion(times: np.ndarray, weights: list[float]) -> None:
    """Counts of independent draws, each within four standard errors of its share."""
    shares, total = np.array(weights) / sum(weights), times.sum()
    assert (np.abs(times / total - shares) < 4 * np.sqrt(shares * (1 - shares) / total)).all()


def random_history(size: int, seed: int = 3) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    rows = [
        {
            "times_drawn": int(random.integers(0, 4)),
            "last_iteration": int(random.integers(0, 9)),
            **({"alpha": random.uniform(1, 9), "beta": random.uniform(1, 9)} if random.random() < 0.7 else {}),
            "reward_variance": random.uniform(0, 0.3),
            "easy_streak": int(random.integers(0, 3)),
            "hard_streak": int(random.integers(0, 3)),
        }
        for _ in range(size)
    ]
    return history_of(rows)


@pytest.mark.parametrize("name", NAMES)
def test_a_draw_follows_from_seed_and_history_and_not_from_the_order_of_rows(name):
    history, prompts = random_history(60), pool(60)
    config = SelectConfig.model_validate(
        {"prompts_per_iteration": 12, "strategy": name, "retire_from": 0.8, "rehearsal_share": 0.1}
        | {"exploration_share": 0.3, "allocation": "informative"}
    )
    one = draw_prompts(prompts, history, config, 10, seed=1)
    other = draw_prompts(prompts.reverse(), history.sample(fraction=1, shuffle=True, seed=9), config, 10, seed=1)
    assert one.drawn.equals(other.drawn) and one.history.equals(other.history) and one.metrics == other.metrics
    assert not one.drawn.equals(draw_prompts(prompts, history, config, 10, seed=2).drawn)
    assert one.drawn["prompt_id"].n_unique() == 12
    assert one.drawn["samples"].sum() == 12 * 8
    assert PromptUse.is_valid(one.history)
    assert one.history["times_drawn"].sum() == history["times_drawn"].sum() + 12


def test_the_posterior_is_carried_on():
    history = random_history(30)
    after = draw_prompts(pool(30), history, SelectConfig(prompts_per_iteration=5), 10, 0).history
    kept = [name for name in PromptUse.column_names() if name not in ("times_drawn", "last_iteration")]
    assert after.select(kept).equals(history.select(kept))


def test_thompson_takes_what_is_surely_near_the_target():
    sure = [(500, 500), (10, 990), (990, 10), (300, 700), (500, 500)]
    assert set(drawn(rated(*sure), 2, strategy="thompson")) == {0, 4}
    assert drawn(rated(*sure), 1, strategy={"name": "thompson", "target": 0.3}) == [3]
    band = {"name": "thompson", "band": [0.25, 0.55]}
    assert {drawn(rated(*sure), 1, seed=seed, strategy=band)[0] for seed in range(40)} == {0, 3, 4}


def test_thompson_tries_what_it_does_not_know():
    """A wide posterior far from the target is drawn now and then, a narrow one is not."""
    history = rated(*([(500, 1000)] * 5), (1, 4), (100, 900))
    taken = [drawn(history, 5, seed=seed, strategy="thompson") for seed in range(200)]
    assert sum(5 in each for each in taken) > 15
    assert not any(6 in each for each in taken)


def test_variance_draws_in_proportion_to_p_times_1_minus_p():
    history = rated((50, 50), (20, 80), (95, 5))
    assert_in_proportion(times_drawn(history, 3000, strategy="variance"), [0.5 * 0.5, 0.2 * 0.8, 0.95 * 0.05])


def test_variance_of_the_reward_counts_unknown_prompts_as_the_mean():
    history = history_of([{"reward_variance": 0.0}, {"reward_variance": 0.4}, {}])
    strategy = {"name": "variance", "of": "reward"}
    times = times_drawn(history, 1500, strategy=strategy)
    assert times[0] == 0
    assert_in_proportion(times[1:], [0.4, 0.2])
    nothing = history_of([{"reward_variance": 0.0}, {"reward_variance": 0.0}, {}])
    assert drawn(nothing, 3, strategy=strategy)[0] == 2


def test_the_band_comes_first_then_what_is_nearest_to_it():
    history = rated((50, 50), (9, 91), (75, 25), (99, 1), (21, 79))
    assert set(drawn(history, 3, strategy="band")) == {0, 2, 4}
    assert drawn(history, 5, strategy="band")[3:] == [1, 3]


def test_greso_skips_with_one_minus_p_to_the_streak():
    """Two prompts are walked through in random order until one is taken: by hand, 1 to keep."""
    history = history_of([{}, {"easy_streak": 1}, {"hard_streak": 2}])
    rates = Rates(easy=0.3, hard=0.6)
    assert_in_proportion(times_drawn(history, 3000, rates, strategy="greso"), [1.0, 0.3, 0.6**2])


def test_retired_prompts_come_for_rehearsal_alone_the_longest_ago_first():
    rows = [{"alpha": 9.0, "beta": 1.0, "last_outcome": 1, "last_iteration": 9 - place} for place in range(10)]
    history = history_of([*rows, *([{"times_drawn": 50}] * 20)])
    options = {"retire_from": 0.9, "rehearsal_share": 0.2}
    taken = drawn(history, 10, **options)
    assert [place for place in taken if place < 10] == [9, 8]
    assert not [place for place in drawn(history, 10, retire_from=0.9, rehearsal_share=0) if place < 10]
    whole = draw_prompts(pool(30), history, SelectConfig(prompts_per_iteration=28, **options), 10, 0)
    assert whole.metrics["retired"] == 10
    assert whole.metrics["rehearsed"] == 8, "too few others: the batch is filled"
    assert len(whole.drawn) == 28


def test_a_prompt_nobody_tried_is_never_retired():
    config = SelectConfig(prompts_per_iteration=2, retire_from=0.4)
    assert draw_prompts(pool(4), None, config, 1, 0).metrics["retired"] == 0


@pytest.mark.parametrize(
    ("changes", "reachable"),
    [
        ({"samples_per_prompt": 4}, 9 / 10),
        ({}, 17 / 18),
        ({"history": {"discount": 0}}, 9 / 10),
        ({"history": {"discount": 1}}, 161 / 162),
        ({"allocation": {"name": "informative", "max_samples": 16}}, 33 / 34),
    ],
    ids=str,
)
def test_a_pass_rate_that_a_solved_prompt_never_comes_to_cannot_retire(changes, reachable):
    assert SelectConfig(retire_from=reachable - 1e-4, **changes)
    with pytest.raises(ValidationError, match="none would retire; lower retire_from"):
        SelectConfig(retire_from=reachable + 1e-4, **changes)


def test_the_mean_of_a_solved_prompt_is_that_of_twenty_updates():
    history = HistoryConfig(prior=(0.3, 0.7), discount=0.8)
    posterior = Beta(np.array([0.3]), np.array([0.7]))
    for _ in range(20):
        posterior = update_beta(posterior, np.array([4.0]), np.array([4.0]), history.prior, history.discount)
    assert history.mean_of_solved(4) == pytest.approx(posterior.mean[0])


def test_exploring_takes_failed_prompts_and_those_least_drawn():
    known = [{"alpha": 5.0, "beta": 5.0, "last_outcome": 1, "times_drawn": 4}] * 30
    failed = [{"alpha": 1.0, "beta": 9.0, "last_outcome": 1, "last_iteration": 5 + place} for place in range(4)]
    history = history_of([*known, *failed, {"times_drawn": 0, "last_iteration": 0}])
    config = SelectConfig(prompts_per_iteration=10, strategy="band", exploration_share=0.4)
    found = draw_prompts(pool(35), history, config, 10, 0)
    taken = [int(prompt_id[1:]) for prompt_id in found.drawn["prompt_id"]]
    assert found.metrics["explored"] == 4
    assert sorted(taken[-4:])[:2] == [30, 31] and 34 in taken[-4:]
    assert found.metrics["never_drawn"] == 0


def test_a_small_share_of_a_small_batch_is_not_always_nothing():
    history = history_of([{"times_drawn": 3}] * 10 + [{"times_drawn": 0}])
    config = {"strategy": "variance", "exploration_share": 0.1}
    shares = [10 in drawn(history, 2, seed=seed, **config) for seed in range(60)]
    assert 0 < sum(shares) < 60


def test_unknown_names_and_shares_above_the_whole_are_refused():
    with pytest.raises(ValidationError, match="thompson"):
        SelectConfig(strategy="thomson")
    with pytest.raises(ValidationError, match="more than the whole"):
        SelectConfig(retire_from=0.9, rehearsal_share=0.6, exploration_share=0.6)
    with pytest.raises(ValidationError, match="expected 0 <= low <= high <= 1"):
        SelectConfig(strategy={"name": "band", "low": 0.9, "high": 0.1})


@settings(max_examples=60, deadline=None)
@given(keys=st.lists(st.integers(0, 5), min_size=1, max_size=30), count=st.integers(-1, 35), seed=st.integers(0, 5))
def test_the_first_are_those_of_a_whole_sort(keys, count, seed):
    random = np.random.default_rng(seed)
    key, shuffle, among = np.array(keys, float), random.permutation(len(keys)), random.random(len(keys)) < 0.8
    sorted_places = [place for place in np.lexsort((shuffle, key)) if among[place]]
    assert first_places(count, among, key, shuffle).tolist() == sorted_places[: max(count, 0)]
