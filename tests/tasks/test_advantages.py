"""Advantages per row against their definitions, computed group by group, and what they do to the policy gradient."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks._maths.advantages import (
    ADVANTAGES,
    best_against_worst,
    calibrated_reward,
    codpo_pairs,
    crpg,
    crraft,
    per_component,
    soft_overlong,
)

REWARDS = np.array([1.0, 0.0, 0.5, 3.0, 1.0, 7.0])
GROUPS = np.array([4, 4, 4, 9, 9, 2])
GROUP_RELATIVE = [
    "group_mean",
    "group_mean_std",
    "leave_one_out",
    "group_mean_batch_std",
    "group_mean_whitened",
]
few = settings(deadline=None, max_examples=40)
rows = st.lists(st.tuples(st.floats(-100, 100), st.integers(0, 4), st.booleans()), min_size=1, max_size=30)


def columns(rows):
    return np.array([r for r, _, _ in rows]), np.array([g for _, g, _ in rows]), np.array([p for _, _, p in rows])


def members(groups):
    return {int(g): np.flatnonzero(groups == g) for g in sorted(set(groups.tolist()))}


def std(values):
    return np.sqrt(sum((v - sum(values) / len(values)) ** 2 for v in values) / max(len(values) - 1, 1))


def definition(name, rewards, groups):
    """Row by row, as the papers state it; the small number keeps a division by 0 away."""
    eps, result = 1e-6, []
    centred = [r - np.mean(rewards[groups == g]) for r, g in zip(rewards, groups, strict=True)]
    for i, r in enumerate(rewards):
        own = rewards[groups == groups[i]]
        others = [rewards[j] for j in range(len(rewards)) if groups[j] == groups[i] and j != i]
        result.append(
            {
                "group_mean": lambda c=centred[i]: c,
                "group_mean_std": lambda c=centred[i], own=own: c / (std(own) + eps),
                "leave_one_out": lambda r=r, others=others: r - np.mean(others) if others else 0.0,
                "group_mean_batch_std": lambda c=centred[i]: c / (std(rewards) + eps),
                "group_mean_whitened": lambda c=centred[i]: (c - np.mean(centred)) / (std(centred) + eps),
                "batch_whitened": lambda r=r: (r - np.mean(rewards)) / (std(rewards) + eps),
                "reward": lambda r=r: r,
                "positive_reward": lambda r=r: r if r > 0 else 0.0,
                "best_of_n": lambda i=i, own=own: float(
                    rewards[i] == max(own) and i == min(np.flatnonzero((groups == groups[i]) & (rewards == max(own))))
                ),
            }[name]()
        )
    return np.array(result)


@pytest.mark.parametrize("name", ADVANTAGES)
@few
@given(rows=rows)
def test_every_kind_is_its_papers_definition(name, rows):
    rewards, groups, _ = columns([(round(r, 2), g, p) for r, g, p in rows])
    np.testing.assert_allclose(ADVANTAGES[name](rewards, groups), definition(name, rewards, groups), atol=1e-6)


def test_by_hand():
    found = {name: function(REWARDS, GROUPS).round(4).tolist() for name, function in ADVANTAGES.items()}
    assert found["group_mean"] == [0.5, -0.5, 0, 1, -1, 0]
    assert found["group_mean_std"] == [1, -1, 0, 0.7071, -0.7071, 0]
    assert found["leave_one_out"] == [0.75, -0.75, 0, 2, -2, 0]
    assert found["best_of_n"] == [1, 0, 0, 1, 0, 1]


@pytest.mark.parametrize("name", GROUP_RELATIVE)
def test_groups_of_one_or_of_equal_rewards_teach_exactly_nothing(name):
    """Also where the mean of equal numbers isn't that number: 0.1 + 0.1 + 0.1 != 0.3."""
    rewards, groups = np.array([7.0, 0.1, 0.1, 0.1, 2.0, 2.0]), np.array([0, 1, 1, 1, 2, 2])
    np.testing.assert_array_equal(ADVANTAGES[name](rewards, groups), 0)


@pytest.mark.parametrize("name", GROUP_RELATIVE)
@few
@given(rows=rows, shift=st.floats(-50, 50))
def test_sums_to_zero_in_each_group_and_ignores_what_a_whole_group_gets(name, rows, shift):
    rewards, groups, _ = columns([(round(r, 2), g, p) for r, g, p in rows])
    found = ADVANTAGES[name](rewards, groups)
    for own in members(groups).values():
        assert abs(found[own].sum()) <= 1e-6 * len(rows) * (1 + np.abs(found).max())
    if name != "group_mean_batch_std":
        shifted = rewards + shift * (groups == groups[0])
        np.testing.assert_allclose(ADVANTAGES[name](shifted, groups), found, atol=1e-5)


@pytest.mark.parametrize("name", ["batch_whitened", "group_mean_whitened"])
def test_whitened_advantages_have_mean_0_and_deviation_1(name):
    """REINFORCE++ and its baseline variant, over the batch."""
    found = ADVANTAGES[name](REWARDS, GROUPS)
    assert (found.mean(), found.std(ddof=1)) == (pytest.approx(0, abs=1e-12), pytest.approx(1, rel=1e-5))
    np.testing.assert_array_equal(ADVANTAGES[name](np.full(4, 0.1), np.arange(4)), 0)


@few
@given(rows=rows)
def test_dr_grpo_is_leave_one_out_scaled(rows):
    """Methods, section 4: Dr. GRPO = RLOO (K - 1) / K."""
    rewards, groups, _ = columns(rows)
    size = np.array([(groups == g).sum() for g in groups])
    loo = ADVANTAGES["leave_one_out"](rewards, groups)
    np.testing.assert_allclose(ADVANTAGES["group_mean"](rewards, groups), loo * (size - 1) / size, atol=1e-9)


def all_groups(p, size):
    """Every outcome of a group of Bernoulli rewards: rewards and groups of all rows, each group's probability."""
    outcomes = np.array(list(itertools.product([0.0, 1.0], repeat=size)))
    probability = np.prod(np.where(outcomes == 1, p, 1 - p), axis=1)
    return outcomes, np.repeat(np.arange(len(outcomes)), size), probability


@pytest.mark.parametrize(
    ("p", "expected"), [(0.05, 0.149), (0.1, 0.176), (0.2, 0.240), (0.3, 0.318), (0.5, 0.5), (0.9, 0.824)]
)
def test_a_baseline_from_groups_that_survived_filtering_is_biased_as_in_closed_form(p, expected):
    """T6, arXiv 2601.08521: E[baseline | group not degenerate] = (p - p^G) / (1 - p^G - (1-p)^G), G = 8, exactly."""
    outcomes, groups, probability = all_groups(p, 8)
    advantages = ADVANTAGES["group_mean"](outcomes.ravel(), groups).reshape(outcomes.shape)
    baseline = (outcomes - advantages).mean(axis=1)
    survives = (advantages != 0).any(axis=1)
    found = np.average(baseline[survives], weights=probability[survives])
    assert found == pytest.approx((p - p**8) / (1 - p**8 - (1 - p) ** 8), rel=1e-9)
    assert found == pytest.approx(expected, abs=5e-4)
    assert np.average(baseline, weights=probability) == pytest.approx(p)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_the_policy_gradient_of_each_baseline_in_expectation(p):
    """E[mean_i A_i d log P(r_i) / d logit] over all groups of 4: the reward's gradient p (1 - p), or 3/4 of it."""
    outcomes, groups, probability = all_groups(p, 4)

    def gradient(name):
        advantages = ADVANTAGES[name](outcomes.ravel(), groups).reshape(outcomes.shape)
        return probability @ (advantages * (outcomes - p)).mean(axis=1)

    assert gradient("reward") == pytest.approx(p * (1 - p))
    assert gradient("leave_one_out") == pytest.approx(p * (1 - p))
    assert gradient("group_mean") == pytest.approx(p * (1 - p) * 3 / 4)


@few
@given(rows=rows, weights=st.tuples(st.floats(0.1, 3), st.floats(0.1, 3)))
def test_rewards_of_many_components_are_normalised_each_in_its_group(rows, weights):
    rewards, groups, passed = columns([(round(r, 1), g, p) for r, g, p in rows])
    components = np.stack([rewards, passed.astype(float)], axis=1)
    total = np.zeros(len(rewards))
    for column, weight in zip(components.T, weights, strict=True):
        for own in members(groups).values():
            if len(set(column[own])) > 1:
                total[own] += weight * (column[own] - column[own].mean()) / (column[own].std(ddof=1) + 1e-6)
    expected = (total - total.mean()) / (std(total) + 1e-6)
    np.testing.assert_allclose(per_component(components, np.array(weights), groups), expected, atol=1e-5)


def test_a_component_that_never_varies_adds_nothing():
    rewards = np.array([1.0, 0.0, 2.0, 5.0])
    with_constant = np.stack([rewards, np.full(4, 0.1)], axis=1)
    groups = np.array([0, 0, 1, 1])
    alone = per_component(rewards[:, None], np.array([1.0]), groups)
    np.testing.assert_array_equal(per_component(with_constant, np.array([1.0, 9.0]), groups), alone)
    np.testing.assert_array_equal(per_component(with_constant[:, 1:], np.array([1.0]), groups), 0)


def test_an_answer_that_is_better_in_two_rewards_gets_more_than_one_that_is_better_in_one():
    """GDPO's motive: normalising the sum of the rewards makes both groups' advantages the same."""
    components, groups = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), np.array([0, 0, 1, 1])
    summed = ADVANTAGES["group_mean_std"](components.sum(axis=1), groups)
    assert summed[3] == pytest.approx(summed[1], rel=1e-5)
    found = per_component(components, np.ones(2), groups)
    assert found[3] == pytest.approx(2 * found[1])


def test_soft_overlong_points_of_dapo():
    """T7: Lmax 20,480 and a buffer of 4,096 tokens."""
    lengths = np.array([1, 16384, 17408, 18432, 20480, 30000])
    np.testing.assert_array_equal(soft_overlong(lengths, 20480, 4096), [0, 0, -0.25, -0.5, -1, -1])


@pytest.mark.parametrize("buffer", [0, 101])
def test_an_impossible_buffer_is_refused(buffer):
    with pytest.raises(ValueError, match="between 1 and max_tokens = 100"):
        soft_overlong(np.array([1]), 100, buffer)


def test_calibrated_reward_is_the_chance_to_beat_the_baseline():
    rewards, baseline = np.array([1.0, 0.0, -800.0, 800.0]), np.array([0.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(calibrated_reward(rewards, baseline), [1 / (1 + np.exp(-1)), 0.5, 0, 1], rtol=1e-12)


CALIBRATED = np.array([0.9, 0.5, 0.8, 0.4, 0.6])
PASSED = np.array([True, True, False, True, True])
KL = np.array([5.0, -1.0, 0.0, 1.0, 20.0])


def test_crpg_by_hand():
    """max(1 - KL/10, 0) R where all judges pass: 0.45, 0.55, 0, 0.36, 0; minus their mean 0.272."""
    found = crpg(CALIBRATED, PASSED, KL, 10.0)
    np.testing.assert_allclose(found, np.array([0.45, 0.55, 0.0, 0.36, 0.0]) - 0.272)


def test_crraft_by_hand():
    """Group 0: the row of 0.9 is the best; group 1: 0.8 didn't pass and 0.6 is too far away, 0.4 is left."""
    found = crraft(CALIBRATED, PASSED, KL, 10.0, np.array([0, 0, 1, 1, 1]))
    np.testing.assert_array_equal(found, [0.9, 0, 0, 0.4, 0])
    np.testing.assert_array_equal(crraft(CALIBRATED, ~PASSED, KL, -1.0, np.array([0, 0, 1, 1, 1])), 0)


def test_pairs_by_hand():
    rewards, groups = np.array([3.0, 1.0, 2.0, 5.0, 5.0, 4.0]), np.array([1, 1, 1, 0, 0, 2])
    assert best_against_worst(rewards, groups) == [(0, 1)]
    judged = np.array([False, True, True, True, False, False])
    # Group 0: 5 passes, 5 fails; group 1: 2 is the best that passes, 3 the only that fails; group 2: none passes.
    assert codpo_pairs(rewards, judged, groups) == [(3, 4), (2, 0)]


@few
@given(rows=rows)
def test_pairs_are_the_extremes_of_each_group(rows):
    rewards, groups, passed = columns([(round(r), g, p) for r, g, p in rows])
    plain, judged = [], []
    for own in members(groups).values():
        best_first = sorted(own.tolist(), key=lambda i: (-rewards[i], i))
        worst_first = sorted(own.tolist(), key=lambda i: (rewards[i], i))
        if rewards[best_first[0]] > rewards[worst_first[0]]:
            plain.append((best_first[0], worst_first[0]))
        chosen = [i for i in best_first if passed[i]]
        rejected = [i for i in worst_first if not passed[i]]
        if chosen and rejected:
            judged.append((chosen[0], rejected[0]))
        elif chosen and rewards[chosen[0]] > rewards[worst_first[0]]:
            judged.append((chosen[0], worst_first[0]))
    assert best_against_worst(rewards, groups) == plain
    assert codpo_pairs(rewards, passed, groups) == judged


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_batch_without_a_row_has_no_advantages(name):
    assert ADVANTAGES[name](np.zeros(0), np.zeros(0, dtype=int)).shape == (0,)


def test_two_lengths_and_a_reward_that_is_no_number_are_refused():
    with pytest.raises(ValueError, match="one length"):
        ADVANTAGES["group_mean"](np.zeros(3), np.zeros(2, dtype=int))
    with pytest.raises(ValueError, match="reward of row 1 is nan"):
        ADVANTAGES["group_mean"](np.array([0.0, np.nan]), np.zeros(2, dtype=int))
