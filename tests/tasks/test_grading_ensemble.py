"""A reward model's members as one grade and its uncertainty, calibrated or not."""

import json

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from storage.errors import InputError
from storage.records import Grade
from tasks._training.member_scores import MemberScores
from tasks.grading.config import EnsembleConfig, GraderConfig
from tasks.grading.scores import grades_from_scores

ROLLOUTS = pl.DataFrame(
    {
        "rollout_id": ["a", "b", "c"],
        "policy_id": ["p"] * 3,
        "token_ids": [[1, 2], [3], [4, 5, 6]],
        "finish_reason": ["stop", "length", "stop"],
    },
    schema_overrides={"token_ids": pl.List(pl.Int32)},
)
RAW = np.array([[1.0, 14.0], [0.0, 10.0], [-1.0, 2.0]])
SCORES = MemberScores(RAW, np.array([0.0, 10.0]), np.array([1.0, 4.0]))  # standardised: (1, 1), (0, 0), (-1, -2)
ABSOLUTE = {"format": 1, "scale": "absolute", "map": {"kind": "affine", "slope": 2.0, "intercept": 5.0}}
LOG_ODDS = {"format": 1, "scale": "log_odds", "map": {"kind": "log_odds", "slope": 0.5}}


def graded(scores=SCORES, calibration=None, **grader):
    config = GraderConfig(grader="reward_model", **grader)
    frame = grades_from_scores(ROLLOUTS, scores, grader=config, version="v", latency_s=0.1, calibration=calibration)
    return Grade.validate(frame)


def sigma(x):
    return 1 / (1 + np.exp(-np.asarray(x)))


def test_one_member_is_graded_as_before():
    one = MemberScores(RAW[:, 1:], np.array([10.0]), np.array([4.0]))
    found = graded(one)
    np.testing.assert_allclose(found["score"], sigma([1, 0, -2]))
    assert found["uncertainty"].to_list() == [None] * 3
    assert json.loads(found["detail"][0]) == {"raw": 14.0}


@pytest.mark.parametrize(
    ("ensemble", "expected"),
    [
        (None, [1, 0, -1.5]),
        ({"how": "wco"}, [1, 0, -2]),
        ({"how": "uwo", "strength": 2.0}, [1, 0, -1.5 - 2 * 0.25]),
        ({"how": "soft", "strength": 0.5}, [1, 0, -0.5 * np.log((np.exp(2) + np.exp(4)) / 2)]),
    ],
)
def test_members_are_aggregated_and_their_deviation_is_the_uncertainty(ensemble, expected):
    found = graded(ensemble=ensemble)
    np.testing.assert_allclose(found["score"], sigma(expected))
    x, deviation = expected[2], 0.5
    np.testing.assert_allclose(found["uncertainty"], [0, 0, (sigma(x + deviation) - sigma(x - deviation)) / 2])
    assert json.loads(found["detail"][2]) == {"members": [-1.0, -2.0]}


def test_a_member_that_is_not_finite_fails_the_row():
    broken = MemberScores(np.where(RAW == 10.0, np.nan, RAW), SCORES.mean, SCORES.std)
    found = graded(broken)
    assert found["status"].to_list() == ["ok", "failed", "ok"]
    assert found["score"][1] is None
    assert found["uncertainty"][1] is None
    assert json.loads(found["detail"][1]) == {"error": "the reward model's score is 0.0, nan"}


def test_log_odds_are_squashed():
    np.testing.assert_allclose(graded(calibration=LOG_ODDS)["score"], sigma([0.5, 0, -0.75]))


def test_the_end_token_is_no_length():
    by_length = {"log_length": np.log1p([0, 1, 2, 3]).tolist(), "effect": [0.0, 0.1, 0.5, 0.9]}
    found = graded(calibration=LOG_ODDS | {"map": {"kind": "identity"}, "length": by_length})
    np.testing.assert_allclose(found["score"], sigma([1 - 0.1, 0 - 0.1, -1.5 - 0.5]))


def test_peoples_units_are_given_where_they_are_asked_for():
    found = graded(calibration=ABSOLUTE, ensemble={"absolute": True}, score_range=(0, 10))
    np.testing.assert_allclose(found["score"], [7, 5, 2])
    np.testing.assert_allclose(found["uncertainty"], [0, 0, 1])
    np.testing.assert_allclose(graded(calibration=ABSOLUTE)["score"], sigma([1, 0, -1.5]))
    narrow = graded(calibration=ABSOLUTE, ensemble={"absolute": True}, score_range=(0, 6))
    assert narrow["status"].to_list() == ["failed", "ok", "ok"]
    assert "7 lies outside score_range 0 to 6" in json.loads(narrow["detail"][0])["error"]
    with pytest.raises(InputError, match="the reward model has no calibration"):
        graded(ensemble={"absolute": True})
    for other in (LOG_ODDS, LOG_ODDS | {"scale": "standardised", "map": {"kind": "identity"}}):
        with pytest.raises(InputError, match=f"the reward model has a calibration in units {other['scale']};"):
            graded(calibration=other, ensemble={"absolute": True}, score_range=(0, 10))


def test_only_a_reward_model_has_members():
    with pytest.raises(ValidationError, match="verifier has no members"):
        GraderConfig(ensemble=EnsembleConfig())
    with pytest.raises(ValidationError, match="beta is above 0"):
        EnsembleConfig(how="soft", strength=0)
