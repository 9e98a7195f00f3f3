"""Groups in which slow grades are missing: held, on instant graders alone, or imputed without bias."""

import numpy as np
import pytest
from composed import frames, parts, rewarded
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from storage.errors import InputError
from tasks._maths.imputation import impute, weighted_line
from tasks.grading.composite import composite
from tasks.grading.config import BudgetConfig, GraderConfig, GradingConfig

FAST = GraderConfig(grader="number", name="fast", weight=1)
SLOW = GraderConfig(grader="folder", name="slow", weight=3, latency="slow", params={"path": "asked"})
ROWS = [
    {"fast": 0.2, "slow": 1.0, "group": 0},
    {"fast": 0.6, "slow": None, "group": 0},
    {"fast": 0.2, "slow": 1.0, "group": 1},
    {"fast": 0.6, "slow": 0.0, "group": 1},
    {"fast": None, "slow": 0.5, "group": 1},
]


def test_held_rollouts_have_no_reward():
    assert rewarded(ROWS, FAST, SLOW)["reward"].to_list() == pytest.approx([0.8, None, 0.8, 0.15, None])


def test_a_group_that_lacks_slow_grades_takes_its_instant_graders_and_says_so():
    found = rewarded(ROWS, FAST, SLOW, missing="fast_only")
    assert found["reward"].to_list() == pytest.approx([0.2, 0.6, 0.8, 0.15, None])
    assert [row.get("fast_only") for row in parts(found)] == [1, 1, None, None, None]
    assert parts(found)[0]["slow"] == 1.0


def test_steps_and_judges_of_slow_graders_are_left_out_where_their_grades_are_missing():
    judge = SLOW.model_copy(update={"judge": True, "pass_score": 0.5})
    steps = [{"step": "clip", "graders": ["slow"], "high": 0.5}, {"step": "gate"}]
    found = rewarded(ROWS, FAST, judge, missing="fast_only", steps=steps)
    assert found["reward"].to_list() == pytest.approx([0.2, 0.6, 0.425, 0.0, None])
    assert found["passed"].to_list() == [None, None, True, False, True]
    instant = FAST.model_copy(update={"judge": True, "pass_score": 0.5})
    assert rewarded(ROWS, instant, judge, missing="fast_only")["passed"].to_list()[:4] == [False, True, False, False]


SCORE = st.floats(0, 1) | st.none()


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), SCORE, st.integers(0, 3)), min_size=1, max_size=20))
def test_no_group_mixes_complete_and_incomplete(rows):
    given_rows = [{"fast": fast, "slow": slow, "group": group} for fast, slow, group in rows]
    found = rewarded(given_rows, FAST, SLOW, missing="fast_only")
    assert found["complete"].all()
    for group in {row["group"] for row in given_rows}:
        members = [index for index, row in enumerate(given_rows) if row["group"] == group]
        lacks = any(given_rows[index]["slow"] is None for index in members)
        for index in members:
            row = given_rows[index]
            expected = row["fast"] if lacks else (row["fast"] + 3 * row["slow"]) / 4
            assert found["reward"][index] == pytest.approx(expected)


def test_imputed_scores_against_a_hand_computed_table():
    """slow = 1 - fast where it is known: the line is exact, so the correction is 0 and the prediction is the truth."""
    rows = [{"fast": f, "slow": s, "group": g} for f, s, g in [(0, 1, 0), (1, 0, 0), (0.5, None, 0)]]
    rows += [{**row, "group": 1} for row in rows]
    found = rewarded(rows, FAST, SLOW, missing="impute")
    assert found["reward"].to_list() == pytest.approx([0.75, 0.25, 0.5] * 2)
    assert parts(found)[2] == pytest.approx({"fast": 0.5, "weighted_mean": 0.5, "slow/imputed": 0.5})
    # Group 0 is predicted by y = x of group 1, that by 0.25 + 0.75 x; at propensity 1/2 a residual counts double.
    estimates = impute(
        np.array([0.0, 1, 0, 1, 0]), np.array([0.0, 1, 0, 1, 0.5]), np.array([True] * 5), np.full(5, 0.5),
        np.array([0, 0, 1, 1, 0]),
    )  # fmt: skip
    assert estimates == pytest.approx([0, 1, -0.25, 1, 1])


def test_a_line_is_weighted_least_squares():
    x, y, weights = np.array([0.0, 1, 2, 9]), np.array([1.0, 3, 4, 0]), np.array([1.0, 2, 1, 5])
    rows = np.array([True, True, True, False])
    slope, intercept = np.polyfit(x[:3], y[:3], 1, w=np.sqrt(weights[:3]))
    assert weighted_line(x, y, weights, rows) == pytest.approx((intercept, slope))
    assert weighted_line(np.ones(4), y, weights, rows) == (pytest.approx(11 / 4), 0.0)


def test_imputation_is_unbiased_for_every_row_and_regression_alone_is_not():
    """2,000 draws of who is observed, more often where the fast score is high; the truth isn't on any line."""
    random = np.random.default_rng(3)
    groups = np.repeat(np.arange(20), 4)
    fast = random.random(80)
    slow = np.clip(fast**3 + 0.2 * random.standard_normal(80), 0, 1)
    propensity = 0.25 + 0.6 * fast
    draws, plain = [], []
    for _ in range(2000):
        observed = random.random(80) < propensity
        hidden = np.where(observed, slow, np.nan)
        draws.append(impute(fast, hidden, observed, propensity, groups))
        intercept, slope = weighted_line(fast, slow, np.ones(80), observed)
        plain.append(intercept + slope * fast)
    estimates, predictions = np.array(draws), np.array(plain)
    error = estimates.std(axis=0, ddof=1) / np.sqrt(len(draws))
    off = np.abs(estimates.mean(axis=0) - slow) / error
    assert off.max() < 4.5 and np.mean(off < 2) > 0.9
    mean_error = estimates.mean(axis=1).std(ddof=1) / np.sqrt(len(draws))
    assert abs(estimates.mean() - slow.mean()) < 4 * mean_error
    assert abs(predictions.mean() - slow.mean()) > 10 * mean_error


def test_a_propensity_in_the_detail_is_taken_and_a_wrong_one_refused():
    rows = [{"fast": 0.5, "slow": s, "group": g} for g, s in enumerate([1.0, 0.0, 1.0, None])]
    for row, propensity in zip(rows, (0.5, 0.5, 0.5, 0.5), strict=True):
        row["slow_detail"] = f'{{"propensity": {propensity}}}'
    found = rewarded(rows, FAST, SLOW, missing="impute")
    # Groups 0 and 2 are predicted from group 1 (0), and 1 and 3 from groups 0 and 2 (1).
    assert [row["slow/imputed"] for row in parts(found)] == pytest.approx([2.0, -1.0, 2.0, 1.0])
    rows[0]["slow_detail"] = '{"propensity": 0}'
    with pytest.raises(InputError, match=r"grade of r000000: propensity in its detail is 0.0, expected"):
        rewarded(rows, FAST, SLOW, missing="impute")


def test_nothing_observed_is_held():
    rows = [{"fast": 0.5, "slow": None}, {"fast": 0.1, "slow": None}]
    assert rewarded(rows, FAST, SLOW, missing="impute")["reward"].to_list() == [None, None]


@pytest.mark.parametrize(
    ("graders", "options", "message"),
    [
        ([FAST.model_copy(update={"weight": 0}), SLOW], {"missing": "fast_only"}, "no instant grader has a weight"),
        ([FAST, SLOW], {"missing": "impute", "steps": [{"step": "product"}]}, "product can't take them"),
        (
            [FAST, SLOW.model_copy(update={"budget": BudgetConfig(max_rollouts=8, audit_fraction=0)})],
            {"missing": "impute"},
            "draws no group at random",
        ),
        (
            [FAST, SLOW],
            {"missing": "impute", "steps": [{"step": "gate", "graders": ["slow"], "at_least": 1}]},
            "a gate can't judge by an imputed score",
        ),
        (
            [FAST, SLOW],
            {"missing": "impute", "steps": [{"step": "clip", "graders": ["slow"], "low": 0}]},
            "a clip of an imputed score biases it",
        ),
    ],
)
def test_what_missing_grades_cannot_have_is_refused(graders, options, message):
    with pytest.raises(ValidationError, match=message):
        GradingConfig(graders=graders, composite=options)


def test_before_the_slow_grader_starts_nothing_is_missing():
    late = SLOW.model_copy(update={"from_iteration": 3})
    config = GradingConfig(graders=[FAST, late], composite={"missing": "fast_only"})
    assert config.active(1, True).composite.missing == "hold"
    assert config.active(3, True).composite.missing == "fast_only"


def test_a_composite_with_steps_needs_the_rollouts():
    grades, _ = frames(ROWS, ("fast", "slow"))
    config = GradingConfig(graders=[FAST, SLOW], composite={"missing": "fast_only"})
    with pytest.raises(ValueError, match="needs the rollouts' groups"):
        composite(grades, config.graders, config.composite)
