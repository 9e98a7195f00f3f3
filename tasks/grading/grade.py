"""From samples and a grader to the `Grade` frame. A grader that fails on a row leaves a failed row: never a zero."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import polars as pl

from storage.records import Grade
from tasks.grading.config import GraderConfig
from tasks.grading.graders import Grader, Progress
from tasks.grading.paid import Memory, Purse, answers_of
from tasks.grading.sample import Sample
from tasks.grading.verdict import Answer, Failure, Verdict


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

    Equal outputs to a prompt are graded once, except by a grader that compares a prompt's samples. With a `purse`
    answers that were paid for before are found. `latency_s` is the time that the call took, shared by its samples.
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
    rows = [
        grade_row(sample, answers[place], config, grader.version_of(sample), latency_s)
        for sample, place in zip(samples, places, strict=True)
    ]
    return grade_frame(rows)


def purse_for(config: GraderConfig, memory: Memory) -> Purse:
    """A purse that keeps what becomes an ok grade."""
    return Purse(memory, lambda answer: isinstance(checked_answer(answer, config), Verdict))


def _distinct(samples: Sequence[Sample]) -> tuple[list[Sample], list[int]]:
    """The samples of distinct content, and for every sample the place of its content among them."""
    known: dict[tuple[str, str, bool], int] = {}
    distinct: list[Sample] = []
    places = []
    for sample in samples:
        place = known.setdefault(sample.content, len(distinct))
        if place == len(distinct):
            distinct.append(sample)
        places.append(place)
    return distinct, places


def grade_row(
    rollout: Gradable,
    answer: Answer,
    config: GraderConfig,
    version: str,
    latency_s: float = 0.0,
    notes: Mapping[str, Any] | None = None,
) -> tuple[Any, ...]:
    """An answer in the order of `Grade`'s columns; `notes` are added to its detail."""
    checked = checked_answer(answer, config)
    start = (rollout.rollout_id, config.label, version)
    if isinstance(checked, Failure):
        detail = json.dumps(checked.detail | {"error": checked.error} | dict(notes or {}))
        return (*start, "failed", None, None, None, detail, latency_s, checked.cost, rollout.policy_id)
    score, passed, known = checked.score, checked.passed, dict(checked.detail)
    if rollout.truncated:
        score *= config.truncated_factor
        passed = False if passed is not None else None
        known["truncated"] = True
    known |= notes or {}
    text = json.dumps(known) if known else "{}"
    return (*start, "ok", score, passed, checked.uncertainty, text, latency_s, checked.cost, rollout.policy_id)


def grade_frame(rows: Sequence[tuple[Any, ...]]) -> pl.DataFrame:
    """The `Grade` frame of such rows."""
    return pl.DataFrame(rows, schema=Grade.create_empty().schema, orient="row")


def checked_answer(answer: Answer, config: GraderConfig) -> Answer:
    """A failure for a score that is no number or outside the grader's range."""
    if isinstance(answer, Failure):
        return answer
    score = float(answer.score)
    low, high = config.score_range or (-math.inf, math.inf)
    if math.isfinite(score) and low <= score <= high:
        return answer if type(answer.score) is float else Verdict(score, *_rest(answer))
    return Failure(f"ValueError: the score is {score}, expected {low:g} to {high:g}", answer.detail, answer.cost)


def _rest(answer: Verdict) -> tuple[bool | None, dict[str, Any], float | None, float]:
    return answer.passed, answer.detail, answer.uncertainty, answer.cost
