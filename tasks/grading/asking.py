"""What a slow grader is asked in one iteration.

A ticket is kept in the memory before anything else is done with it: a process that is killed doesn't ask twice.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import polars as pl

from storage.errors import PosttrainError, TransientError
from storage.records import PROPENSITY
from tasks.grading.choosing import Choice, Expected, Group, choose
from tasks.grading.config import SlowGrader
from tasks.grading.deferred import DeferredGrader, Handed, NotTaken
from tasks.grading.grade import grade_row
from tasks.grading.keys import grader_key, row_keys
from tasks.grading.paid import Memory, Spending, kept_frame, kept_verdict
from tasks.grading.sample import Sample
from tasks.grading.verdict import Failure, Verdict

log = logging.getLogger(__name__)
Rows = list[tuple[Any, ...]]


class Origin(NamedTuple):
    """Where the rollouts that are asked about lie, and the iteration."""

    iteration: int
    rollouts: str
    batch: str
    grading: str


@dataclass
class Asked:
    """Rows in the order of `Grade` and of `PendingGrade`; how many samples were handed over, and what it cost."""

    grades: Rows = field(default_factory=list)
    pending: Rows = field(default_factory=list)
    submitted: int = 0
    spending: Spending = field(default_factory=Spending)


def ask(
    samples: Sequence[Sample],
    variances: Mapping[str, float],
    spec: SlowGrader,
    grader: DeferredGrader,
    version: str,
    origin: Origin,
    memory: Memory,
    seed: int,
) -> Asked:
    """Hand over the samples of the chosen groups whose answers nobody knows, and make a row of every sample.

    `variances` holds that of the fast rewards per prompt. Raises `TransientError` when samples weren't taken; what was
    taken is kept and found when it is tried again.
    """
    key = grader_key(spec.grader, version)
    keys = row_keys(samples, compares_group=False)
    known = known_answers(memory, key, keys)
    choices = choose(_groups(samples, keys, known, variances), spec.budget, _expected(memory, key), seed)
    asked = Asked()
    missing = {
        row: sample
        for row, sample in zip(keys, samples, strict=True)
        if row not in known and choices[sample.prompt_id].asked
    }
    hits = [answer for row in dict.fromkeys(keys) if isinstance(answer := known.get(row), Verdict)]
    asked.spending = Spending(len(hits), cost_saved=sum(answer.cost for answer in hits))
    handed = _hand_over(missing, key, grader, spec, memory)
    asked.submitted = sum(isinstance(answer, str) for answer in handed.values())
    known |= handed
    for sample, row in zip(samples, keys, strict=True):
        _add_row(asked, sample, row, known.get(row), choices[sample.prompt_id], spec, (key, version), origin)
    return asked


def known_answers(memory: Memory, key: str, keys: list[str]) -> dict[str, Verdict | Handed]:
    """Row key -> its verdict, or the ticket under which it was asked for."""
    found = memory.find(key, keys).iter_rows(named=True)
    return {row["row_key"]: kept_verdict(row) if row["status"] == "ok" else row["ticket"] for row in found}


def _groups(
    samples: Sequence[Sample], keys: Sequence[str], known: Mapping[str, Any], variances: Mapping[str, float]
) -> list[Group]:
    members: dict[str, list[str]] = {}
    for sample, key in zip(samples, keys, strict=True):
        members.setdefault(sample.prompt_id, []).append(key)
    return [
        Group(prompt_id, len(rows), len(set(rows) - set(known)), variances.get(prompt_id, 0.0))
        for prompt_id, rows in members.items()
    ]


def _expected(memory: Memory, key: str) -> Expected:
    """The mean cost and seconds of the answers so far; 1 where nothing is known."""
    spent = memory.spent(key)
    seconds = spent["detail"].str.json_path_match("$.seconds").cast(pl.Float64, strict=False)
    means = [spent["cost"].mean(), seconds.mean()]
    return Expected(*(float(mean) if isinstance(mean, float) and mean > 0 else 1.0 for mean in means))


def _hand_over(
    missing: Mapping[str, Sample], key: str, grader: DeferredGrader, spec: SlowGrader, memory: Memory
) -> dict[str, Verdict | Handed]:
    """Row key -> ticket or failure. Each chunk's tickets are kept before the next one is handed over."""
    handed: dict[str, Verdict | Handed] = {}
    rows = list(missing)
    for start in range(0, len(rows), spec.grader.chunk):
        chunk = rows[start : start + spec.grader.chunk]
        given = _submit(grader, [missing[row] for row in chunk], spec)
        tickets = [(row, answer) for row, answer in zip(chunk, given, strict=True) if isinstance(answer, str)]
        if tickets:
            memory.add(key, kept_frame([ticket_row(row, ticket) for row, ticket in tickets]))
        refused = [answer.error for answer in given if isinstance(answer, NotTaken)]
        if refused:
            raise TransientError(f"slow grader {spec.grader.label} took {len(tickets)} of {len(chunk)}: {refused[0]}")
        handed |= zip(chunk, given, strict=True)
    return handed


def _submit(grader: DeferredGrader, samples: list[Sample], spec: SlowGrader) -> list[Handed]:
    try:
        given = list(grader.submit(samples))
    except (PosttrainError, ConnectionError, TimeoutError):
        raise
    except Exception as error:
        # The boundary at which somebody else's code fails: these rows say so, the others are graded.
        log.debug("slow grader %s failed on submitting", spec.grader.label, exc_info=True)
        return [Failure(f"{type(error).__name__}: {error}")] * len(samples)
    if len(given) != len(samples):
        raise ValueError(f"slow grader {spec.grader.label} gave {len(given)} tickets for {len(samples)} samples")
    return given


def ticket_row(row_key: str, ticket: str | None) -> tuple[Any, ...]:
    return (row_key, "pending", None, None, None, "{}", 0.0, ticket)


def _add_row(
    asked: Asked,
    sample: Sample,
    row_key: str,
    answer: Verdict | Handed | None,
    choice: Choice,
    spec: SlowGrader,
    by: tuple[str, str],
    origin: Origin,
) -> None:
    key, version = by
    notes: dict[str, Any] = {"chosen": choice.rule}
    if choice.probability > 0:
        notes[PROPENSITY] = choice.probability
    if isinstance(answer, Verdict | Failure):
        paid_before = replace(answer, cost=0.0) if isinstance(answer, Verdict) else answer
        asked.grades.append(grade_row(sample, paid_before, spec.grader, version, notes=notes))
        return
    status = "skipped" if answer is None else "pending"
    if isinstance(answer, str):
        notes["ticket"] = answer
        entry = (sample.rollout_id, spec.grader.label, sample.prompt_id, sample.policy_id, sample.truncated, answer)
        place = (origin.rollouts, origin.batch, origin.grading)
        asked.pending.append((*entry, origin.iteration, version, key, row_key, choice.probability, *place))
    start = (sample.rollout_id, spec.grader.label, version, status)
    asked.grades.append((*start, None, None, None, json.dumps(notes), None, 0.0, sample.policy_id))
