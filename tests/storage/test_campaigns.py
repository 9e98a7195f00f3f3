"""Committed states: one runner commits iteration k, the other is told and loses nothing."""

from datetime import UTC, datetime

import pytest

from storage.campaigns import Campaign, Launch, State, names
from storage.errors import CampaignConflict, InputError


def state(iteration, launch_id="one"):
    return State(
        campaign="c",
        iteration=iteration,
        policy=f"policy_update/{iteration}",
        champion="base_model/0",
        champion_evaluation="evaluation/0",
        launch_id=launch_id,
    )


def test_of_two_runners_one_commits(root):
    campaign = Campaign(root, "c")
    campaign.commit(state(0))
    campaign.commit(state(1, "one"))
    with pytest.raises(CampaignConflict, match=r"iteration 1 was committed by launch one .* while this launch \(two\)"):
        campaign.commit(state(1, "two"))
    assert campaign.state(1).launch_id == "one"
    assert campaign.iterations() == [0, 1]
    assert campaign.last_state() == campaign.state(1)


def test_what_isnt_there_is_said(root):
    campaign = Campaign(root, "c")
    assert campaign.last_state() is None
    assert not campaign.exists()
    with pytest.raises(InputError, match="nothing was launched"):
        campaign.launch()
    campaign.commit(state(0))
    with pytest.raises(InputError, match=r"iteration 7 isn't committed .* only \[0\]"):
        campaign.state(7)


def test_launches_keep_their_configuration(root):
    campaign = Campaign(root, "c")
    for launch_id, seed in [("20260101T000000-a", 1), ("20260102T000000-a", 2)]:
        campaign.record_launch(
            Launch(launch_id=launch_id, campaign="c", started_at=datetime.now(UTC), config={"seed": seed})
        )
    assert campaign.launch().config == {"seed": 2}
    assert campaign.launch("20260101T000000-a").config == {"seed": 1}
    assert names(root) == ["c"]
