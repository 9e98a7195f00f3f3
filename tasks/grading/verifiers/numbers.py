"""The final number of a text: as GSM8K marks it, else the last one."""

import functools
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from tasks.grading.verdict import Verdict, checked_param, read_once, required_answer, with_defaults

NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+")
MARKED = re.compile(r"####\s*\$?\s*(\S+)|\\boxed\{([^{}]*)\}")
# The end of a text that is searched first, in characters.
TAIL = 160


def number(text: str, answer: str | None, params: Mapping[str, Any]) -> Verdict:
    """1 when the text's final number equals the answer's, else 0.

    The final number stands after #### or in \\boxed{}; without either it is the last number (GSM8K's convention).
    Params: tolerance (0: relative to the answer). Raises `ValueError` when the answer holds no number.
    """
    tolerance = _tolerance(params)
    expected = _expected(required_answer("number", answer))
    found = final_number(text)
    passed = found is not None and abs(found - expected) <= abs(expected) * tolerance
    return Verdict(float(passed), passed, {"found": None if found is None else str(found), "expected": str(expected)})


def final_number(text: str) -> Decimal | None:
    """The number after the last #### or in the last \\boxed{}, else the last number of the text."""
    marks = [place for place in (text.find("####"), text.find("\\boxed{")) if place >= 0]
    marked = MARKED.findall(text, min(marks)) if marks else None
    numbers = NUMBER.findall("".join(marked[-1])) if marked else _last_numbers(text)
    if not numbers:
        return None
    try:
        return Decimal(numbers[-1].replace(",", ""))
    except InvalidOperation:
        return None


def _last_numbers(text: str) -> list[str]:
    """The numbers at the end of a text, at least the last. No number crosses a blank: a text is cut at one."""
    cut = text.rfind(" ", 0, -TAIL) if len(text) > TAIL else -1
    return (cut >= 0 and NUMBER.findall(text, cut)) or NUMBER.findall(text)


@read_once
def _tolerance(params: Mapping[str, Any]) -> Decimal:
    value = with_defaults("number", params, {"tolerance": 0})["tolerance"]
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
    checked_param("number", "tolerance", value, fits, "a number from 0 on, relative to the answer")
    return Decimal(str(value))


@functools.lru_cache(maxsize=4096)
def _expected(answer: str) -> Decimal:
    expected = final_number(answer)
    if expected is None:
        raise ValueError(f"verifier number: the answer {answer!r} holds no number")
    return expected
