"""Replay: informative groups of earlier nights, the best first, within their share, corrected for their policy."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.policy_update.config import PolicyUpdateConfig
from tasks.policy_update.replay import choose_replayed


def night(groups, age=0):
    """Trajectories of groups of rewards."""
    rows = [(f"g{index}", float(reward), 1.0, age) for index, rewards in enumerate(groups) for reward in rewards]
    return pl.DataFrame(rows, schema=["group_id", "reward", "weight", "age"], orient="row").lazy()


def chosen(found):
    return [(age, sorted(set(frame["group_id"]))) for age, frame in found]


def test_the_most_informative_groups_come_first_and_even_ones_never():
    newer, older = night([[0, 0, 0, 1], [1, 1, 1, 1]]), night([[0, 0, 1, 1], [0, 1, 1, 1]])
    groups = [(1, newer), (2, older)]
    found = choose_replayed(4, groups, max_share=0.5, max_age=None)
    assert chosen(found) == [(1, []), (2, ["g0"])]
    found = choose_replayed(8, groups, max_share=0.5, max_age=None)
    # 1/4 and 3/4 are equally informative: the newer comes first.
    assert chosen(found) == [(1, ["g0"]), (2, ["g0"])]
    found = choose_replayed(1000, groups, max_share=0.5, max_age=None)
    assert chosen(found) == [(1, ["g0"]), (2, ["g0", "g1"])]
    assert chosen(choose_replayed(1000, groups, max_share=0.5, max_age=1)) == [(1, ["g0"]), (2, [])]
    assert chosen(choose_replayed(0, groups, max_share=None, max_age=None)) == [(1, ["g0", "g1"]), (2, ["g0", "g1"])]
    assert choose_replayed(8, [], max_share=0.5, max_age=None) == []


def test_a_group_that_is_too_large_makes_room_for_smaller_ones():
    groups = [(1, night([[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1]]))]
    assert chosen(choose_replayed(4, groups, max_share=0.5, max_age=None)) == [(1, ["g1"])]
    assert chosen(choose_replayed(0, groups, max_share=0.5, max_age=None)) == [(1, [])]


@settings(max_examples=60, deadline=None)
@given(
    nights=st.lists(
        st.lists(st.lists(st.sampled_from([0, 0.5, 1]), min_size=1, max_size=5), min_size=1, max_size=4),
        min_size=1,
        max_size=3,
    ),
    fresh=st.integers(0, 30),
    share=st.floats(0.05, 0.9),
)
def test_replayed_rows_stay_within_their_share_in_whole_groups(nights, fresh, share):
    older = [(age, night(groups)) for age, groups in enumerate(nights, start=1)]
    found = choose_replayed(fresh, older, max_share=share, max_age=None)
    rows = sum(len(frame) for _, frame in found)
    assert rows <= share * (fresh + rows) + 1e-9
    for (_, frame), groups in zip(found, nights, strict=True):
        for (group,), members in frame.group_by("group_id"):
            assert sorted(members["reward"]) == sorted(groups[int(group[1:])])
            assert np.ptp(members["reward"].to_numpy()) > 0


@pytest.mark.parametrize(
    ("changes", "uncorrected"),
    [
        ({}, False),
        ({"old_logprobs": "trainer"}, True),
        ({"old_logprobs": "trainer", "correction": {"kind": "truncate"}}, False),
        ({"objective": "likelihood"}, True),
        ({"objective": "dpo"}, False),
        ({"old_logprobs": "trainer", "replay_iterations": 0}, False),
    ],
)
def test_replay_without_a_factor_for_its_policy_is_known(changes, uncorrected):
    assert PolicyUpdateConfig(**{"replay_iterations": 2, **changes}).replays_uncorrected == uncorrected
