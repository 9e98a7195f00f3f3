"""What the grades say of the graders: hand-computed numbers, and the invariants of agreement."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.records import GraderAgreement, GraderSummary
from tasks._maths.agreement import cohens_kappa, mean_ranks, spearman
from tasks.grading.analysis import agreement_of, analysis_metrics, summarise_graders


def grades(rows: list[tuple]) -> pl.LazyFrame:
    """Grades of (rollout, grader, score or None, passed, latency in s, cost); without a score it failed."""
    columns = ["rollout_id", "grader", "score", "passed", "latency_s", "cost"]
    schema = dict(zip(columns, [pl.String, pl.String, pl.Float64, pl.Boolean, pl.Float64, pl.Float64], strict=True))
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    return frame.with_columns(
        status=pl.when(pl.col("score").is_null()).then(pl.lit("failed")).otherwise(pl.lit("ok"))
    ).lazy()


GRADES = grades(
    [
        *[(f"r{i}", "fast", i / 4, i >= 2, 0.001, 0.0) for i in range(5)],
        *[(f"r{i}", "judge", 0.1 + i / 10, i >= 1, 1.0 + i, 0.5) for i in range(4)],
        ("r4", "judge", None, None, 9.0, 0.25),
    ]
)  # fmt: skip


def test_a_summary_against_hand_computed_numbers():
    summary = summarise_graders(GRADES)
    assert GraderSummary.is_valid(summary)
    fast, judge = summary.to_dicts()
    assert (fast["ok"], fast["failed"], fast["pending"], fast["rollouts"]) == (5, 0, 0, 5)
    assert fast["score_mean"] == 0.5 and fast["score_std"] == pytest.approx(np.sqrt(0.125))
    assert fast["quantiles"] == pytest.approx([0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
    assert [place for place, count in enumerate(fast["histogram"]) if count] == [0, 5, 10, 15, 19]
    assert fast["passed_fraction"] == pytest.approx(0.6)
    assert (judge["ok"], judge["failed"], judge["cost"]) == (4, 1, 2.25)
    assert judge["latency_p50_s"] == 3.0 and judge["latency_p95_s"] == pytest.approx(8.0)


def test_agreement_against_hand_computed_numbers():
    agreement = agreement_of(GRADES)
    assert GraderAgreement.is_valid(agreement)
    # Both rank r0 to r3 alike; verdicts FFTT against FTTT: observed 3/4, by chance 1/2 x 3/4 + 1/2 x 1/4 = 1/2.
    assert agreement.rows() == [("fast", "judge", 4, pytest.approx(1.0), pytest.approx(0.5))]
    metrics = analysis_metrics(summarise_graders(GRADES), agreement)
    assert metrics == pytest.approx(
        {
            "cost": 2.25,
            "failed_fraction/fast": 0,
            "failed_fraction/judge": 0.2,
            "latency_p95_s/fast": 0.001,
            "latency_p95_s/judge": 8.0,
            "spearman/fast/judge": 1.0,
        }
    )


def test_a_grader_that_only_failed_has_no_distribution():
    summary = summarise_graders(grades([("r", "a", None, None, 0.5, 0.0), ("s", "a", None, None, 0.5, 0.0)]))
    assert GraderSummary.is_valid(summary)
    assert summary["quantiles"].to_list() == [[]] and summary["score_mean"].to_list() == [None]
    assert agreement_of(grades([("r", "a", 1.0, None, 0.5, 0.0)])).is_empty()


def test_scores_beyond_0_and_1_widen_the_histogram():
    row = summarise_graders(grades([("r", "a", -2.0, None, 0.5, 0.0), ("s", "a", 6.0, None, 0.5, 0.0)])).row(
        0, named=True
    )
    assert (row["low"], row["high"], row["histogram"][0], row["histogram"][-1]) == (-2, 6, 1, 1)


def test_kappa_and_spearman_by_hand():
    assert mean_ranks(np.array([5.0, 1, 5, 3])).tolist() == [3.5, 1, 3.5, 2]
    # Cohen (1960)-like table of 50: both yes 20, only first 5, only second 10, none 15: (0.7 - 0.5) / 0.5.
    first = np.repeat([True, True, False, False], [20, 5, 10, 15])
    second = np.repeat([True, False, True, False], [20, 5, 10, 15])
    assert cohens_kappa(first, second) == pytest.approx(0.4)
    assert spearman(np.array([1.0, 2, 3, 4, 5]), np.array([5.0, 6, 7, 8, 7])) == pytest.approx(0.82078268)
    assert spearman(np.ones(3), np.arange(3.0)) is None
    assert cohens_kappa(np.ones(3, bool), np.ones(3, bool)) is None
    assert cohens_kappa(np.array([], bool), np.array([], bool)) is None and spearman(np.array([]), np.array([])) is None


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=20))
def test_only_the_order_of_scores_counts_for_their_agreement(pairs):
    first, second = np.array(pairs, dtype=float).T
    found = spearman(first, second)
    assert spearman(np.exp(first), second**3) == (None if found is None else pytest.approx(found))
    assert spearman(second, first) == (None if found is None else pytest.approx(found))
    assert spearman(-first, second) == (None if found is None else pytest.approx(-found))
    if found is not None:
        assert spearman(first, first) == pytest.approx(1)
