"""From samples and a grader to the `Grade` frame. A grader that fails on a row leaves a failed row: never a zero."""

import json
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from storage.records import Grade
from tasks.grading.config import GraderConfig
from tasks.grading.graders import Grader, Progress
from tasks.grading.sample import Sample
from tasks.grading.verdict import Answer, Failure

SCHEMA = Grade.create_empty().schema
encode = json.JSONEncoder().encode


class _Columns(NamedTuple):
    """What answers say, a list per column: frames are made of columns several times faster than of rows."""

    status: list[str]
    score: list[float | None]
    passed: list[bool | None]
    uncertainty: list[float | None]
    detail: list[str]
    cost: list[float]


def grade_samples(samples: Sequence[Sample], grader: Grader, config: GraderConfig, progress: Progress) -> pl.DataFrame:
    """The `Grade` frame of one grader over the samples, in their order.

    Equal outputs to a prompt are graded once, except by a grader that compares a prompt's samples: what that cost
    stands in the first one's row. `latency_s` is the time that the call took, shared by its samples.
    """
    if grader.compares_group:
        distinct, places = list(samples), list(range(len(samples)))
    else:
        distinct, places = _distinct(samples)
    started = time.perf_counter()
    answers = grader.grade_batch(distinct, progress)
    latency_s = (time.perf_counter() - started) / max(len(distinct), 1)
    if len(answers) != len(distinct):
        raise ValueError(f"grader {config.label} gave {len(answers)} answers to {len(distinct)} samples")
    said = pl.DataFrame(
        _columns(distinct, answers, config)._asdict(), schema={name: SCHEMA[name] for name in _Columns._fields}
    )
    if len(distinct) < len(samples):
        first = pl.Series(places).is_first_distinct()
        said = said[places].with_columns(pl.when(first).then("cost").otherwise(0.0).alias("cost"))
    known = {
        "rollout_id": [sample.rollout_id for sample in samples],
        "grader_version": [grader.version_of(sample) for sample in samples],
        "policy_id": [sample.policy_id for sample in samples],
    }
    constant = [pl.lit(config.label).alias("grader"), pl.lit(latency_s, pl.Float64).alias("latency_s")]
    frame = pl.DataFrame(known, schema={name: SCHEMA[name] for name in known}).hstack(said)
    return frame.with_columns(constant).select(Grade.column_names())


def _distinct(samples: Sequence[Sample]) -> tuple[list[Sample], list[int]]:
    """The samples of distinct content, and for every sample the place of its content among them."""
    known: dict[tuple[str, str, bool, int], int] = {}
    distinct: list[Sample] = []
    places = []
    for sample in samples:
        place = known.setdefault(sample.content, len(distinct))
        if place == len(distinct):
            distinct.append(sample)
        places.append(place)
    return distinct, places


def _columns(samples: Sequence[Sample], answers: Sequence[Answer], config: GraderConfig) -> _Columns:
    """The answers, column by column. A truncated sample's score is multiplied, and it doesn't pass."""
    columns = _Columns([], [], [], [], [], [])
    low, high = config.score_range or (-math.inf, math.inf)
    for sample, answer in zip(samples, answers, strict=True):
        checked = _checked(answer, low, high)
        if isinstance(checked, Failure):
            columns.status.append("failed")
            columns.score.append(None)
            columns.passed.append(None)
            columns.uncertainty.append(None)
            columns.detail.append(encode(checked.detail | {"error": checked.error}))
        else:
            score, passed, known = float(checked.score), checked.passed, checked.detail
            if sample.truncated:
                score *= config.truncated_factor
                passed = False if passed is not None else None
                known = known | {"truncated": True}
            columns.status.append("ok")
            columns.score.append(score)
            columns.passed.append(passed)
            columns.uncertainty.append(checked.uncertainty)
            columns.detail.append(encode(known) if known else "{}")
        columns.cost.append(checked.cost)
    return columns


def _checked(answer: Answer, low: float, high: float) -> Answer:
    """A failure for a score that is no number or outside the grader's range."""
    if isinstance(answer, Failure):
        return answer
    score = float(answer.score)
    if math.isfinite(score) and low <= score <= high:
        return answer
    return Failure(f"ValueError: the score is {score}, expected {low:g} to {high:g}", answer.detail, answer.cost)
