"""Cutting up a budget: the values of arXiv 2603.12151 as methods lists them, and P(informative) in closed form."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks._maths.compute_optimal import (
    BANDS,
    FITS,
    allocate,
    band_of,
    informative,
    informative_posterior,
    learning_rates,
    model_ceiling,
)

BUDGETS = (1e5, 10**5.5, 10**5.84, 1e6, 10**6.5, 1e7)


@pytest.mark.parametrize(
    ("fit", "samples"),
    [
        ("easy", (7.2, 13.4, 54.8, 118, 379, 444)),
        ("hard", (7.0, 8.8, 32.6, 73, 149, 153)),
        ("easy_joint", (8.5, 8.7, 12.9, 31, 392, 430)),
        ("hard_joint", (8.2, 8.2, 8.2, 8.3, 129, 129)),
    ],
)
def test_the_fits_have_the_tabulated_values(fit, samples):
    for budget, expected in zip(BUDGETS, samples, strict=True):
        rounding = 0.5 if expected >= 100 or expected == int(expected) else 0.05
        assert FITS[fit].samples(budget) == pytest.approx(expected, abs=rounding + 1e-9), budget


@pytest.mark.parametrize(
    ("fit", "floor", "ceiling"),
    [
        ("easy", 6.6, 452),
        ("hard", 6.9, 153),
        ("easy_joint", 8.5, 431),
        ("hard_joint", 8.2, 129),
        ("easy_tokens", 6.2, 613),
    ],
)
def test_the_fits_have_the_tabulated_ends(fit, floor, ceiling):
    sigmoid = FITS[fit].sigmoid
    assert 2**sigmoid.floor == pytest.approx(floor, abs=0.051)
    assert 2**sigmoid.ceiling == pytest.approx(ceiling, abs=0.51)
    assert FITS[fit].samples(10**sigmoid.midpoint) == pytest.approx(math.sqrt(2**sigmoid.floor * 2**sigmoid.ceiling))


def test_the_fit_over_tokens_has_its_range_in_tokens():
    rollouts, tokens = FITS["easy"], FITS["easy_tokens"]
    assert tokens.unit == "tokens" and tokens.low / rollouts.low == pytest.approx(10 ** (9.18 - 5.84))
    assert not rollouts.covers(10_000) and rollouts.covers(160_000) and not rollouts.covers(2e7)


@pytest.mark.parametrize(
    ("pass_rate", "samples", "chance"),
    [
        (0.01, 8, 0.077),
        (0.01, 32, 0.275),
        (0.01, 128, 0.724),
        (0.05, 8, 0.337),
        (0.05, 32, 0.806),
        (0.05, 128, 0.999),
        (0.1, 8, 0.570),
        (0.1, 32, 0.966),
        (0.1, 128, 1.0),
        (0.2, 8, 0.832),
        (0.3, 4, 0.752),
        (0.3, 8, 0.942),
        (0.5, 4, 0.875),
        (0.5, 8, 0.992),
    ],
)
def test_chance_of_an_informative_group(pass_rate, samples, chance):
    assert informative(pass_rate, samples) == pytest.approx(chance, abs=0.00051)
    assert informative(1 - pass_rate, samples) == pytest.approx(informative(pass_rate, samples))


@given(st.floats(0.6, 40), st.floats(0.6, 40), st.integers(2, 64))
def test_the_posterior_chance_is_the_integral(alpha, beta, samples):
    # The substitution p = sin^2(t) takes away the ends' infinite slopes.
    t = (np.arange(4000) + 0.5) / 4000 * np.pi / 2
    p, step = np.sin(t) ** 2, np.pi / 2 / 4000
    constant = math.lgamma(alpha + beta) - math.lgamma(alpha) - math.lgamma(beta)
    density = np.exp(constant + (2 * alpha - 1) * np.log(np.sin(t)) + (2 * beta - 1) * np.log(np.cos(t))) * 2
    expected = float((informative(p, samples) * density).sum() * step)
    found = informative_posterior(np.array([alpha]), np.array([beta]), samples)[0]
    assert found == pytest.approx(expected, abs=2e-3)


def test_a_prior_alone_and_a_sharp_posterior():
    # Uniform: E[p^n] = 1 / (n + 1) at both ends.
    assert informative_posterior(np.ones(1), np.ones(1), 8)[0] == pytest.approx(1 - 2 / 9)
    sharp = informative_posterior(np.array([1e7]), np.array([9e7]), 8)[0]
    assert sharp == pytest.approx(informative(0.1, 8), abs=1e-5)


@given(st.integers(1, 10_000_000), st.sampled_from(["easy", "hard"]), st.integers(1, 2000))
def test_an_allocation_spends_the_budget_and_no_more(rollouts, difficulty, prompts):
    cut = allocate(rollouts, FITS[difficulty].samples(rollouts), difficulty=difficulty, prompts=prompts)
    assert cut.samples >= 8 and cut.samples & (cut.samples - 1) == 0
    assert 1 <= cut.prompts <= prompts and cut.updates >= 1
    spent = cut.samples * cut.prompts * cut.updates
    if rollouts >= cut.samples:
        assert rollouts / 2 < spent <= rollouts


def test_the_budgets_of_the_source_documents_take_eight_samples():
    for rollouts in (10_000, 160_000):
        for difficulty in ("easy", "hard"):
            assert allocate(rollouts, FITS[difficulty].samples(rollouts), difficulty=difficulty).samples == 8
    large = allocate(1e6, FITS["easy"].samples(1e6), difficulty="easy")
    assert (large.samples, large.prompts, large.updates) == (128, 32, 244)
    assert allocate(1e6, FITS["easy"].samples(1e6), difficulty="easy", ceiling=16).samples == 16


def test_learning_rates_grow_with_the_root_of_the_batch():
    assert learning_rates(1024) == pytest.approx({"full": 1e-6, "lora": 1e-5})
    assert learning_rates(4096)["full"] == pytest.approx(2e-6)


def test_ceilings_of_other_models_are_of_easy_prompts():
    assert model_ceiling(8.0, "easy") == ("Llama-3.1-8B", 16)
    assert model_ceiling(4.0, "easy") == ("Qwen3-4B", 64)
    assert (
        model_ceiling(8.0, "hard") is None
        and model_ceiling(7.0, "easy") is None
        and model_ceiling(None, "easy") is None
    )


def test_bands_join_without_gaps():
    assert [band.low for band in BANDS[2:]] == [band.high for band in BANDS[1:-1]]
    names = {999: "trial", 1_000: "small", 20_000: "small", 20_001: "middle", 160_000: "large", 1_000_000: "large"}
    assert {rollouts: band_of(rollouts).name for rollouts in names} == names
    assert band_of(1_000_001).name == "beyond"
