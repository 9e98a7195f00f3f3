"""What has come of what a slow grader was asked in earlier iterations, each answer on the row that asked for it.

An answer is kept in the memory before anything else is done with it: a process that is killed doesn't lose it.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from storage.errors import PosttrainError, StageFailed
from storage.records import PROPENSITY
from tasks.grading.asking import Rows, known_answers, ticket_row
from tasks.grading.config import SlowGrader
from tasks.grading.deferred import DeferredGrader
from tasks.grading.grade import checked_answer, grade_row
from tasks.grading.paid import Memory, kept_frame, kept_row
from tasks.grading.verdict import Answer, Failure, Verdict

log = logging.getLogger(__name__)
Graders = Mapping[str, tuple[SlowGrader, DeferredGrader]]


@dataclass
class Collected:
    """What came for rollouts of earlier iterations, and what is still open."""

    late: Rows = field(default_factory=list)
    pending: list[dict[str, Any]] = field(default_factory=list)
    arrived: dict[int, int] = field(default_factory=dict)
    expired: int = 0
    cost_paid: float = 0.0


def collect(
    pending: Iterable[dict[str, Any]],
    graders: Graders,
    iteration: int,
    max_pending_iterations: int,
    memory: Memory,
) -> Collected:
    """The answers to what earlier iterations asked, each on the row of the rollout that it belongs to.

    What was asked more than `max_pending_iterations` ago fails, and so does what was asked of a grader that there is
    no more. An answer that failed or is too old withdraws its ticket, so that the same sample can be asked again. What
    an answer cost stands in the first row that it belongs to.
    """
    collected = Collected()
    entries = list(pending)
    answers = _answers(entries, graders, memory, collected)
    withdrawn: set[tuple[str, str]] = set()
    for entry in entries:
        named = graders.get(entry["grader"])
        content = (entry["grader_key"], entry["row_key"])
        answer = answers.get(content)
        age = iteration - entry["iteration"]
        if named is None:
            answer = Failure(f"there is no slow grader {entry['grader']} any more: its answer isn't collected")
        elif age > max_pending_iterations:
            if answer is None and content not in withdrawn:
                memory.add(entry["grader_key"], kept_frame([ticket_row(entry["row_key"], None)]))
                withdrawn.add(content)
            answer = Failure(f"no answer within {max_pending_iterations} iterations")
            collected.expired += 1
        elif answer is None:
            collected.pending.append(entry)
            continue
        else:
            answers[content] = replace(answer, cost=0.0)
        collected.late.append(_late_row(entry, answer, named, age))
        if collected.late[-1][3] == "ok":
            collected.arrived[entry["iteration"]] = collected.arrived.get(entry["iteration"], 0) + 1
    return collected


def refuse_fresh(late: Rows, fresh: set[str]) -> None:
    """Raises `StageFailed` when a late grade names a rollout of this iteration: it belongs to an earlier one."""
    strangers = [row[0] for row in late if row[0] in fresh]
    if strangers:
        raise StageFailed(
            f"a late grade names rollout {strangers[0]}, which is of this iteration; expected earlier ones"
        )


class _Entry(NamedTuple):
    rollout_id: str
    policy_id: str
    truncated: bool


def _answers(
    entries: Sequence[dict[str, Any]],
    graders: Graders,
    memory: Memory,
    collected: Collected,
) -> dict[tuple[str, str], Answer]:
    """(grader key, row key) -> the answer, from the memory or from its grader; what is new is kept."""
    answers: dict[tuple[str, str], Answer] = {}
    for label, (spec, grader) in graders.items():
        own = [entry for entry in entries if entry["grader"] == label]
        for key in dict.fromkeys(entry["grader_key"] for entry in own):
            tickets = {entry["row_key"]: entry["ticket"] for entry in own if entry["grader_key"] == key}
            kept = {r: a for r, a in known_answers(memory, key, list(tickets)).items() if isinstance(a, Verdict)}
            wanted = {row: ticket for row, ticket in tickets.items() if row not in kept}
            came = _collect(grader, list(dict.fromkeys(wanted.values())), spec)
            new = {row: came[ticket] for row, ticket in wanted.items() if ticket in came}
            if new:
                memory.add(key, kept_frame([_answer_row(row, answer, spec) for row, answer in new.items()]))
            collected.cost_paid += sum(answer.cost for answer in new.values())
            answers |= {(key, row): replace(answer, cost=0.0) for row, answer in kept.items()}
            answers |= {(key, row): answer for row, answer in new.items()}
    return answers


def _collect(grader: DeferredGrader, tickets: list[str], spec: SlowGrader) -> Mapping[str, Answer]:
    if not tickets:
        return {}
    try:
        return dict(grader.collect(tickets))
    except (PosttrainError, ConnectionError, TimeoutError):
        raise
    except Exception as error:
        # The boundary at which somebody else's code fails: the tickets stay open until they are too old.
        log.warning("slow grader %s gave no answers: %s", spec.grader.label, error, exc_info=True)
        return {}


def _answer_row(row_key: str, answer: Answer, spec: SlowGrader) -> tuple[Any, ...]:
    """An ok row, or the withdrawal of the ticket where the answer is no grade."""
    accepted = isinstance(answer, Verdict) and isinstance(checked_answer(answer, spec.grader), Verdict)
    return kept_row(row_key, answer) if isinstance(answer, Verdict) and accepted else ticket_row(row_key, None)


def _late_row(
    entry: Mapping[str, Any], answer: Answer, named: tuple[SlowGrader, DeferredGrader] | None, age: int
) -> tuple[Any, ...]:
    notes = {"ticket": entry["ticket"], "asked_in": entry["iteration"], "iterations": age}
    if entry["propensity"] > 0:
        notes[PROPENSITY] = entry["propensity"]
    rollout = _Entry(entry["rollout_id"], entry["policy_id"], entry["truncated"])
    if named is None:
        failure = answer if isinstance(answer, Failure) else Failure("")
        detail = json.dumps({"error": failure.error} | notes)
        start = (rollout.rollout_id, entry["grader"], entry["grader_version"], "failed")
        return (*start, None, None, None, detail, None, 0.0, rollout.policy_id)
    return grade_row(rollout, answer, named[0].grader, entry["grader_version"], notes=notes)
