"""Sharing out rollouts: the total is exact, harder prompts get more, and no split is better."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks._maths.posteriors import Beta, expected_informative, informative, samples_needed
from tasks.select.allocation import even
from tasks.select.allocation import informative as allocate
from tasks.select.config import SelectConfig
from tasks.select.strategy_config import EvenConfig, InformativeConfig

parameters = st.floats(0.3, 40)


def posterior_of(pairs) -> Beta:
    return Beta(*(np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True)))


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(parameters, parameters), min_size=1, max_size=40),
    low=st.integers(2, 6),
    width=st.integers(0, 20),
    share=st.floats(0, 1),
    target=st.floats(0.1, 0.99),
)
def test_the_total_is_the_budget_and_nobody_is_out_of_bounds(pairs, low, width, share, target):
    config = InformativeConfig(min_samples=low, max_samples=low + width, target=target)
    budget = (low + round(share * width)) * len(pairs)
    samples = allocate(posterior_of(pairs), budget, config)
    assert samples.sum() == budget
    assert samples.min() >= low and samples.max() <= low + width


@settings(max_examples=30, deadline=None)
@given(pairs=st.lists(st.tuples(parameters, parameters), min_size=2, max_size=4), mean=st.integers(2, 4))
def test_no_other_split_promises_more_informative_groups(pairs, mean):
    """Against every split there is, where no target puts some rollouts before others."""
    posterior, budget = posterior_of(pairs), mean * len(pairs)
    config = InformativeConfig(min_samples=2, max_samples=7, target=0.01)
    found = expected_informative(posterior, allocate(posterior, budget, config)).sum()
    splits = [split for split in itertools.product(range(2, 8), repeat=len(pairs)) if sum(split) == budget]
    best = max(expected_informative(posterior, np.array(split)).sum() for split in splits)
    assert found == pytest.approx(best, abs=1e-12)


def test_hard_prompts_get_more_and_everybody_what_the_target_asks_where_it_can_be_paid():
    posterior = posterior_of([(50, 50), (30, 70), (10, 90)])
    needed = samples_needed(posterior.mean, 0.9, 64)
    assert needed.tolist() == [5, 7, 22]
    assert informative(0.1, 22) >= 0.9 > informative(0.1, 21)
    config = InformativeConfig(min_samples=4, max_samples=64, target=0.9)
    assert allocate(posterior, 34, config).tolist() == [5, 7, 22]
    assert (allocate(posterior, 60, config) >= needed).all()
    short = allocate(posterior, 24, config)
    assert (short <= needed).all() and short[2] > short[0]


def test_even_is_the_same_for_all():
    assert even(posterior_of([(1, 1), (9, 1)]), 16, EvenConfig()).tolist() == [8, 8]


def test_bounds_that_the_mean_does_not_fit_are_refused():
    with pytest.raises(ValidationError, match="samples_per_prompt is 2, the mean of an allocation between"):
        SelectConfig(samples_per_prompt=2, allocation="informative")
