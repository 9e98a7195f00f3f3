"""What worker processes do for the grader `process`: steps, a scorer's scores of them, the outcome. Light."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from storage.errors import InputError, PosttrainError
from storage.plugins import import_named
from tasks.grading.lanes import Prepared, failure, row_by_row
from tasks.grading.verdict import Answer, Failure, Verdict
from tasks.grading.verifiers.steps import arithmetic, outcome_of, splitter, step_verdict

StepScorer = Callable[[Sequence[Mapping[str, str]], list[str]], Sequence[float]]
# A row: the prompt's messages, and the text.
Row = tuple[Sequence[Mapping[str, str]], str]
SCORERS: dict[str, StepScorer] = {"arithmetic": lambda _messages, parts: arithmetic(parts)}


def steps(params: Mapping[str, Any]) -> Prepared:
    """Rows are `Row`s; `params` are all of `process`'. Raises `InputError` for params that there aren't."""
    split, outcome = splitter("process", params), outcome_of("process", params)
    scorer, pass_step = scorer_named(params["scorer"]), params["pass_step"]

    def grade(row: Row) -> Answer:
        messages, text = row
        parts = split(text)
        try:
            scores = [float(score) for score in scorer(messages, parts)]
            return _verdict(len(parts), scores, outcome, pass_step)
        except PosttrainError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a scorer raises, its row says
            return Failure(failure(error).error, {"parts": len(parts)})

    return row_by_row(grade)


def scorer_named(name: Any) -> StepScorer:
    """The scorer of that name or dotted path. Raises `InputError` when there is none."""
    if isinstance(name, str) and name in SCORERS:
        return SCORERS[name]
    if not isinstance(name, str) or ":" not in name:
        raise InputError(
            f"process: params.scorer is {name!r}, expected {', '.join(SCORERS)} or package.module:function"
        )
    found: StepScorer = import_named("scorer", name)
    return found


def _verdict(
    parts: int, scores: Sequence[float], outcome: Callable[[Sequence[float]], float], pass_step: float | None
) -> Answer:
    if len(scores) != parts:
        return Failure(f"the scorer gave {len(scores)} scores to {parts} steps")
    if not all(map(math.isfinite, scores)):
        return Failure(f"the scorer gave {list(scores)}, expected finite numbers")
    found = step_verdict(scores, outcome)
    if pass_step is None:
        return found
    return Verdict(found.score, all(score >= pass_step for score in scores), found.detail)
