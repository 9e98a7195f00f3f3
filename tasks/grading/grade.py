"""From samples and a grader to the `Grade` frame. A grader that fails on a row leaves a failed row: never a zero."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import polars as pl

from storage.records import Grade
from tasks.grading.config import GraderConfig
from tasks.grading.graders import Grader, Progress
from tasks.grading.paid import Memory, Purse, answers_of
from tasks.grading.sample import Sample
from tasks.grading.verdict import Answer, Failure, Verdict

SCHEMA = Grade.create_empty().schema
encode = json.JSONEncoder().encode


class Said(NamedTuple):
    """What a grade says of a rollout: the columns of `Grade` that come from the answer."""

    status: str
    score: float | None
    passed: bool | None
    uncertainty: float | None
    detail: str
    cost: float


class Gradable(Protocol):
    """What a grade's row takes of a rollout: a `Sample`, or a `PendingGrade`."""

    @property
    def rollout_id(self) -> str: ...
    @property
    def policy_id(self) -> str: ...
    @property
    def truncated(self) -> bool: ...


def grade_samples(
    samples: Sequence[Sample], grader: Grader, config: GraderConfig, progress: Progress, purse: Purse | None = None
) -> pl.DataFrame:
    """The `Grade` frame of one grader over the samples, in their order.

    Equal outputs to a prompt are graded once, except by a grader that compares a prompt's samples: what that cost
    stands in the first one's row. With a `purse` answers that were paid for before are found. `latency_s` is the time
    that the call took, shared by its samples.
    """
    if grader.compares_group:
        distinct, places = list(samples), list(range(len(samples)))
    else:
        distinct, places = _distinct(samples)
    started = time.perf_counter()
    answers = answers_of(distinct, grader, config, progress, purse)
    latency_s = (time.perf_counter() - started) / max(len(distinct), 1)
    if len(answers) != len(distinct):
        raise ValueError(f"grader {config.label} gave {len(answers)} answers to {len(distinct)} samples")
    rows = [said_of(sample.truncated, answer, config) for sample, answer in zip(distinct, answers, strict=True)]
    columns = zip(*rows, strict=True) if rows else ([] for _ in Said._fields)  # made of columns a frame is faster
    said = pl.DataFrame(dict(zip(Said._fields, columns, strict=True)), schema={n: SCHEMA[n] for n in Said._fields})
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


def said_of(truncated: bool, answer: Answer, config: GraderConfig, notes: Mapping[str, Any] | None = None) -> Said:
    """An answer as a grade says it; `notes` are added to its detail.

    A truncated rollout's score is multiplied, and it doesn't pass. A score out of range is a failure.
    """
    checked = checked_answer(answer, config)
    known = {**checked.detail, **notes} if notes else checked.detail
    if isinstance(checked, Failure):
        return Said("failed", None, None, None, encode(known | {"error": checked.error}), checked.cost)
    score, passed = float(checked.score), checked.passed
    if truncated:
        score *= config.truncated_factor
        passed = False if passed is not None else None
        known = known | {"truncated": True}
    return Said("ok", score, passed, checked.uncertainty, encode(known) if known else "{}", checked.cost)


def grade_row(
    rollout: Gradable, answer: Answer, config: GraderConfig, version: str, notes: Mapping[str, Any] | None = None
) -> tuple[Any, ...]:
    """A grade that was waited for, in the order of `Grade`'s columns; it took the `seconds` in its detail, if any."""
    status, score, passed, uncertainty, detail, cost = said_of(rollout.truncated, answer, config, notes)
    seconds = answer.detail.get("seconds")
    latency_s = float(seconds) if isinstance(seconds, int | float) and seconds >= 0 else None
    start = (rollout.rollout_id, config.label, version, status, score, passed, uncertainty)
    return (*start, detail, latency_s, cost, rollout.policy_id)


def grade_frame(rows: Sequence[tuple[Any, ...]]) -> pl.DataFrame:
    """The `Grade` frame of such rows."""
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def purse_for(config: GraderConfig, memory: Memory) -> Purse:
    """A purse that keeps what becomes an ok grade."""
    return Purse(memory, lambda answer: isinstance(checked_answer(answer, config), Verdict))


def checked_answer(answer: Answer, config: GraderConfig) -> Answer:
    """A failure for a score that is no number or outside the grader's range."""
    if isinstance(answer, Failure):
        return answer
    score = float(answer.score)
    low, high = config.score_range or (-math.inf, math.inf)
    if math.isfinite(score) and low <= score <= high:
        return answer
    return Failure(f"ValueError: the score is {score}, expected {low:g} to {high:g}", answer.detail, answer.cost)
