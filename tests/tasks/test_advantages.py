"""Advantages against their definitions, computed group by group."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks._maths.advantages import ADVANTAGES, group_mean, group_mean_std, leave_one_out

REWARDS = np.array([1.0, 0.0, 0.5, 3.0, 1.0, 7.0])
GROUPS = np.array([4, 4, 4, 9, 9, 2])

rows = st.lists(st.tuples(st.floats(-100, 100), st.integers(0, 4)), min_size=1, max_size=40)


def test_dr_grpo_subtracts_the_group_mean_only():
    np.testing.assert_allclose(group_mean(REWARDS, GROUPS), [0.5, -0.5, 0.0, 1.0, -1.0, 0.0])


def test_grpo_divides_by_the_sample_standard_deviation():
    found = group_mean_std(REWARDS, GROUPS)
    np.testing.assert_allclose(found[:3], np.array([0.5, -0.5, 0.0]) / np.std([1, 0, 0.5], ddof=1), rtol=1e-5)
    np.testing.assert_allclose(found[3:5], np.array([1.0, -1.0]) / np.sqrt(2), rtol=1e-5)


def test_leave_one_out_compares_with_the_others():
    found = leave_one_out(REWARDS, GROUPS)
    np.testing.assert_allclose(found[:5], [1 - 0.25, 0 - 0.75, 0.5 - 0.5, 3 - 1, 1 - 3])


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_group_of_one_and_a_group_without_variance_teach_nothing(name):
    np.testing.assert_array_equal(ADVANTAGES[name](np.array([7.0, 2.0, 2.0]), np.array([0, 1, 1])), 0)


@pytest.mark.parametrize("name", ADVANTAGES)
@given(rows=rows, shift=st.floats(-50, 50))
def test_sums_to_zero_in_each_group_and_ignores_a_shift_of_all_rewards(name, rows, shift):
    rewards, groups = np.array([r for r, _ in rows]), np.array([g for _, g in rows])
    found = ADVANTAGES[name](rewards, groups)
    scale = 1e-6 * (1 + np.abs(found).max())
    for group in set(groups.tolist()):
        assert abs(found[groups == group].sum()) <= scale * len(rows)
    if np.ptp(rewards) > 1e-3:
        spread = [np.std(rewards[groups == g]) for g in set(groups.tolist())]
        if min((s for s in spread if s > 0), default=1) > 1e-2:
            np.testing.assert_allclose(ADVANTAGES[name](rewards + shift, groups), found, atol=1e-4)


@given(rows=rows)
def test_leave_one_out_is_dr_grpo_scaled(rows):
    """Methods, section 4: Dr. GRPO = RLOO (K - 1) / K."""
    rewards, groups = np.array([r for r, _ in rows]), np.array([g for _, g in rows])
    size = np.array([(groups == g).sum() for g in groups])
    np.testing.assert_allclose(
        group_mean(rewards, groups), leave_one_out(rewards, groups) * (size - 1) / size, atol=1e-9
    )


def test_two_lengths_are_refused():
    with pytest.raises(ValueError, match="one length"):
        group_mean(np.zeros(3), np.zeros(2, dtype=int))
