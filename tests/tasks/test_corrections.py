"""Importance corrections: limits by hand, and unbiasedness by summing over every sequence of a tiny policy."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks._maths.corrections import KINDS, importance_weights, off_policy_sequence_mask, weight_metrics

TRAIN = [np.log([0.5, 0.4]), np.log([0.2]), np.log([0.9, 0.3])]
ENGINE = [np.log([0.25, 0.8]), np.log([0.04]), np.log([0.9, 0.3])]


@pytest.mark.parametrize(
    ("kind", "level", "expected"),
    [
        ("none", "token", [[1, 1], [1], [1, 1]]),
        ("full", "token", [[2, 0.5], [5], [1, 1]]),
        ("truncate", "token", [[1.5, 0.5], [1.5], [1, 1]]),
        ("mask", "token", [[0, 0], [0], [1, 1]]),
        ("none", "sequence", [[1, 1], [1], [1, 1]]),
        ("full", "sequence", [[1, 1], [5], [1, 1]]),
        ("truncate", "sequence", [[1, 1], [1.5], [1, 1]]),
        ("mask", "sequence", [[1, 1], [0], [1, 1]]),
    ],
)
def test_weights_by_hand(kind, level, expected):
    """Ratios 2 and 0.5, 5, 1 and 1, within [0.6, 1.5]; a sequence's ratio is their product."""
    found = importance_weights(TRAIN, ENGINE, kind=kind, level=level, low=0.6, high=1.5)
    for line, one in zip(found, expected, strict=True):
        np.testing.assert_allclose(line, one)


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(list(KINDS)),
    level=st.sampled_from(["token", "sequence"]),
)
def test_weights_keep_their_promises_whatever_the_log_probabilities(lengths, seed, kind, level):
    random = np.random.default_rng(seed)
    train, engine = ([-np.abs(random.normal(0, 40, n)) for n in lengths] for _ in range(2))
    found = importance_weights(train, engine, kind=kind, level=level, low=0.5, high=2.0)
    assert [len(line) for line in found] == lengths
    every = np.concatenate(found)
    assert np.isfinite(every).all()
    assert (every >= 0).all()
    if kind == "truncate":
        assert (every <= 2.0).all()
    if kind == "mask":
        assert ((every == 0) | ((every >= 0.5) & (every <= 2.0))).all()
    if level == "sequence":
        assert all(len(set(line.tolist())) <= 1 for line in found)
    same = importance_weights(train, train, kind=kind, level=level, low=0.5, high=2.0)
    np.testing.assert_array_equal(np.concatenate(same), 1.0)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_weight_never_overflows(level):
    """The log-ratio stops at +-20, also a sequence's sum of many smaller ones."""
    train, engine = [np.zeros(900), np.full(900, -1000.0)], [np.full(900, -1000.0), np.zeros(900)]
    up, down = importance_weights(train, engine, kind="full", level=level, low=0.5, high=2.0)
    assert (set(up.tolist()), set(down.tolist())) == ({np.exp(20.0)}, {np.exp(-20.0)})


def test_only_the_full_sequence_weight_makes_the_gradient_of_another_policys_samples_unbiased():
    """All sequences of two tokens of a two-word vocabulary, the second token's chances depend on the first.

    E_engine[w_t R grad log pi_t] against E_train[R grad log pi_t], in the logit of each context.
    """
    random = np.random.default_rng(1)
    train_p, engine_p = random.uniform(0.2, 0.8, (2, 3))
    rewards = {s: random.normal() for s in itertools.product([0, 1], repeat=2)}

    def chances(p, s):
        return np.array([p[0] if s[0] else 1 - p[0], p[1 + s[0]] if s[1] else 1 - p[1 + s[0]]])

    def gradient(sampler, kind, level):
        total = np.zeros(3)
        for s, r in rewards.items():
            train, engine = np.log(chances(train_p, s)), np.log(chances(sampler, s))
            w = importance_weights([train], [engine], kind=kind, level=level, low=0.99, high=1.01)[0]
            score = [(0, s[0] - train_p[0]), (1 + s[0], s[1] - train_p[1 + s[0]])]
            for (context, slope), weight in zip(score, w, strict=True):
                total[context] += np.prod(chances(sampler, s)) * weight * r * slope
        return total

    true = gradient(train_p, "none", "token")
    np.testing.assert_allclose(gradient(engine_p, "full", "sequence"), true, atol=1e-12)
    for kind, level in [(k, "token") for k in KINDS] + [(k, "sequence") for k in KINDS if k != "full"]:
        assert np.abs(gradient(engine_p, kind, level) - true).max() > 1e-3, (kind, level)


def test_metrics_by_hand():
    """Ratios 2, 0.5, 5, 1, 1: (sum)^2 / (n sum of squares) = 9.5^2 / (5 x 31.25); two outside [0.4, 1.5]."""
    weights = importance_weights(TRAIN, ENGINE, kind="mask", level="token", low=0.4, high=1.5)
    found = weight_metrics(TRAIN, ENGINE, weights, level="token")
    assert found == {
        "correction_mean": pytest.approx(1.9),
        "correction_max": pytest.approx(5.0),
        "correction_effective": pytest.approx(9.5**2 / (5 * 31.25)),
        "correction_masked": pytest.approx(0.4),
    }
    weights = importance_weights(TRAIN, ENGINE, kind="mask", level="sequence", low=0.4, high=1.5)
    found = weight_metrics(TRAIN, ENGINE, weights, level="sequence")
    assert found["correction_mean"] == pytest.approx(7 / 3)
    assert found["correction_effective"] == pytest.approx(49 / (3 * 27))
    assert found["correction_masked"] == pytest.approx(0.2)


def test_rows_without_a_token_have_neutral_metrics():
    empty = [np.zeros(0)]
    weights = importance_weights(empty, empty, kind="truncate", level="sequence", low=0.5, high=2.0)
    assert list(weight_metrics(empty, empty, weights, level="sequence").values()) == [1.0, 1.0, 1.0, 0.0]


def test_rows_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match="row 0"):
        importance_weights([np.zeros(2)], [np.zeros(3)], kind="full", level="token", low=0.5, high=2.0)


def test_only_bad_rows_that_the_policy_left_are_masked():
    advantages, moved = np.array([-1.0, -1.0, 1.0, 0.0]), np.array([0.6, 0.5, 9.0, 9.0])
    np.testing.assert_array_equal(off_policy_sequence_mask(advantages, moved), [0, 1, 1, 1])
    np.testing.assert_array_equal(off_policy_sequence_mask(advantages, moved, delta=0.4), [0, 0, 1, 1])
