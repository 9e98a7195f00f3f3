"""A judge's verdict from its answer, strictly: one JSON object with the request's code, and nothing else.

A verdict that merely stands somewhere in the answer, such as one that the judge quotes from what it graded, is none.
"""

import json
import re
from typing import Any

from tasks.grading.judges.config import is_finite_number
from tasks.grading.judges.prompts import ID, Question

REASONING_END = "</think>"
FENCED = re.compile(r"\A```(?:json)?\s*\n(.*)\n\s*```\Z", re.DOTALL)
SHOWN = 60


class Unparsable(ValueError):
    """The judge's answer isn't a verdict of the form that was asked for."""


def verdict_of(answer: str, question: Question) -> dict[str, Any]:
    """The verdict's fields. Before it may stand reasoning that ends with </think>, and around it a code fence.

    Raises `Unparsable`.
    """
    text = answer.rpartition(REASONING_END)[2].strip()
    fenced = FENCED.match(text)
    try:
        found = json.loads(
            fenced.group(1) if fenced else text, object_pairs_hook=_without_repeats, parse_constant=_refused
        )
    except (ValueError, RecursionError) as error:
        raise Unparsable(f"expected one JSON object and nothing else: {error}") from None
    if not isinstance(found, dict):
        raise Unparsable(f"expected a JSON object, found {_shown(found)}")
    if found.get(ID) != question.code:
        raise Unparsable(
            f"the verdict has not the request's id: expected {question.code}, found {_shown(found.get(ID))}"
        )
    missing = [name for name in question.schema["required"] if name not in found and name != "why"]
    if missing:
        raise Unparsable(f"the verdict lacks {', '.join(missing)}")
    return found


def points_of(verdict: dict[str, Any], highest: int) -> float:
    """`score` as a share of the scale 1..highest, in [0, 1]. Raises `Unparsable`."""
    score = verdict["score"]
    if not is_finite_number(score) or not 1 <= score <= highest:
        raise Unparsable(f"score: expected a number from 1 to {highest}, found {_shown(score)}")
    return float(score - 1) / (highest - 1)


def met_of(verdict: dict[str, Any], count: int) -> list[bool]:
    """Yes or no for every criterion, in the rubric's order. Raises `Unparsable` unless each has exactly one."""
    rows = verdict["criteria"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Unparsable(f"criteria: expected a list of objects, found {_shown(rows)}")
    said = {row.get("number"): row.get("met") for row in rows if not isinstance(row.get("number"), bool | list | dict)}
    if len(rows) != count or set(said) != set(range(1, count + 1)):
        numbers = [row.get("number") for row in rows]
        raise Unparsable(f"criteria: expected the numbers 1 to {count} once each, found {_shown(numbers)}")
    for number, met in said.items():
        if not isinstance(met, bool):
            raise Unparsable(f"criterion {number}: expected met to be true or false, found {_shown(met)}")
    return [said[number] for number in range(1, count + 1)]


def choice_of(verdict: dict[str, Any], choices: tuple[str, ...]) -> str:
    """`better`, one of the choices. Raises `Unparsable`."""
    better = verdict["better"]
    if better not in choices:
        raise Unparsable(f"better: expected {', '.join(choices)}, found {_shown(better)}")
    return str(better)


def why(verdict: dict[str, Any], longest: int = 500) -> dict[str, str]:
    """The judge's reasons for the grade's detail, cut."""
    reasons = verdict.get("why")
    return {"why": reasons[:longest]} if isinstance(reasons, str) and reasons else {}


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
