"""Returns and generalised advantages per token: the sums of the definitions, written out term by term."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks._maths.token_advantages import discounted_returns, gae, whiten_tokens, with_kl_in_reward

few = settings(deadline=None, max_examples=40)
ragged = st.tuples(st.lists(st.integers(0, 9), max_size=6), st.integers(0, 2**31))


def lines(shape, offset=0):
    lengths, seed = shape
    random = np.random.default_rng(seed + offset)
    return [random.normal(size=length) for length in lengths]


def assert_lines(found, expected):
    assert [len(line) for line in found] == [len(line) for line in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


@few
@given(shape=ragged, gamma=st.floats(0, 1))
def test_returns_are_discounted_sums_of_what_follows(shape, gamma):
    rewards = lines(shape)
    expected = [[sum(gamma**k * r for k, r in enumerate(line[t:])) for t in range(len(line))] for line in rewards]
    assert_lines(discounted_returns(rewards, gamma), expected)


@few
@given(shape=ragged, gamma=st.floats(0, 1), lam=st.floats(0, 1))
def test_gae_is_the_discounted_sum_of_td_errors(shape, gamma, lam):
    rewards, values = lines(shape), lines(shape, 1)
    advantages, returns = gae(rewards, values, gamma, lam)
    expected = []
    for r, v in zip(rewards, values, strict=True):
        delta = [r[t] + gamma * (v[t + 1] if t + 1 < len(v) else 0.0) - v[t] for t in range(len(r))]
        expected.append([sum((gamma * lam) ** k * d for k, d in enumerate(delta[t:])) for t in range(len(r))])
    assert_lines(advantages, expected)
    assert_lines(returns, [np.array(a) + v for a, v in zip(expected, values, strict=True)])


@few
@given(shape=ragged, gamma=st.floats(0, 1))
def test_gae_is_the_td_error_at_lambda_0_and_the_return_less_the_value_at_lambda_1(shape, gamma):
    rewards, values = lines(shape), lines(shape, 1)
    following = [np.append(v[1:], 0.0)[: len(v)] for v in values]
    td = [r + gamma * n - v for r, n, v in zip(rewards, following, values, strict=True)]
    assert_lines(gae(rewards, values, gamma, 0.0)[0], td)
    monte_carlo = discounted_returns(rewards, gamma)
    assert_lines(gae(rewards, values, gamma, 1.0)[0], [g - v for g, v in zip(monte_carlo, values, strict=True)])
    assert_lines(gae(rewards, values, gamma, 1.0)[1], monte_carlo)


def test_a_perfect_critic_leaves_nothing_to_learn():
    rewards = [np.array([0.0, 0.0, 1.0]), np.array([0.5])]
    advantages, _ = gae(rewards, discounted_returns(rewards, 0.9), 0.9, 0.95)
    assert_lines(advantages, [np.zeros(3), np.zeros(1)])


def test_gae_changes_neither_rewards_nor_values():
    rewards, values = [np.array([0.0, 1.0])], [np.array([0.5, 0.25])]
    gae(rewards, values, 1.0, 0.95)
    discounted_returns(rewards, 0.5)
    assert_lines(rewards + values, [[0.0, 1.0], [0.5, 0.25]])


def test_reward_with_kl_by_hand():
    """beta = 0.1: each token pays for its own KL, the last gets the answer's reward too."""
    found = with_kl_in_reward(
        np.array([1.0, -2.0, 9.0]), [np.array([1.0, -2.0, 3.0]), np.array([4.0]), np.array([])], 0.1
    )
    assert_lines(found, [[-0.1, 0.2, 0.7], [-2.4], []])


@few
@given(shape=ragged)
def test_whitening_is_over_all_tokens_of_all_rows(shape):
    values = lines(shape)
    every = [value for line in values for value in line]
    found = whiten_tokens(values)
    if len(every) > 1:
        mean = sum(every) / len(every)
        deviation = (sum((v - mean) ** 2 for v in every) / (len(every) - 1)) ** 0.5
        assert_lines(found, [[(v - mean) / (deviation + 1e-6) for v in line] for line in values])
    else:
        assert_lines(found, [np.zeros(len(line)) for line in values])


@pytest.mark.parametrize("constant", [0.1, 0.0])
def test_equal_tokens_whiten_to_exactly_zero(constant):
    assert not np.concatenate(whiten_tokens([np.full(3, constant), np.full(4, constant)])).any()
