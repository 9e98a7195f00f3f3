"""Rewards by step: how a text falls into steps, what arithmetic says of each, and the outcome over all of them."""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import regex as interruptible

from storage.errors import InputError
from tasks.grading.verdict import Verdict, with_defaults

NUMBER = r"-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?%?"
OPERATOR = r"[-+*/×÷xX]"
# The right side is one whole number: nothing of it is left over, and the calculation doesn't go on after it.
EQUALITY = re.compile(
    rf"(?<![\w.)])(?P<left>{NUMBER}(?:\s*{OPERATOR}\s*{NUMBER})+)\s*=\s*(?P<right>{NUMBER})"
    r"(?![\d,.]*[\d%])(?!\s*[-+*/×÷(])"
)
# What stands before the left side where that is only the end of a longer calculation.
CONTINUES = re.compile(rf"[\d)%]\s*{OPERATOR}\s*$")
TERM = re.compile(rf"({OPERATOR}?)\s*({NUMBER})")
NUMBERED = re.compile(r"^\s*(?:step\s+)?\d+[.):]\s+", re.IGNORECASE | re.MULTILINE)
PATTERN_S = 1.0
STEPS_DEFAULTS = {"split": "lines", "pattern": None, "outcome": "min", "without": 1.0}


def blank_lines(text: str) -> list[str]:
    """Paragraphs."""
    return _stripped(re.split(r"\n\s*\n", text))


def lines(text: str) -> list[str]:
    """Lines that hold something."""
    return _stripped(text.splitlines())


def numbered(text: str) -> list[str]:
    """`1. ...`, `2) ...`, `Step 3: ...` at the beginning of a line; what stands before the first is a step too."""
    starts = [found.start() for found in NUMBERED.finditer(text)]
    cuts = [0, *starts, len(text)]
    return _stripped(text[start:stop] for start, stop in itertools.pairwise(cuts))


SPLITTERS: dict[str, Callable[[str], list[str]]] = {"blank_lines": blank_lines, "lines": lines, "numbered": numbered}


def splitter(grader: str, params: Mapping[str, Any]) -> Callable[[str], list[str]]:
    """The function that `split` names; `regex` cuts at each match of `pattern`, as `re.split` does without groups.

    That one raises `TimeoutError`, which fails the row, when a text keeps the pattern busy for longer than a second.
    """
    kind = params["split"]
    if kind == "regex":
        try:
            # Python's own `re` can't be interrupted and holds every thread while it backtracks.
            pattern = interruptible.compile(params["pattern"])
        except (interruptible.error, TypeError) as error:
            raise InputError(f"{grader}: params.pattern {params['pattern']!r}: {error}") from error
        if pattern.groups:
            raise InputError(f"{grader}: params.pattern {pattern.pattern!r} has groups; write them as (?:...)")
        return lambda text: _stripped(pattern.split(text, timeout=PATTERN_S))
    if kind not in SPLITTERS:
        raise InputError(f"{grader}: params.split is {kind!r}, expected one of {', '.join([*SPLITTERS, 'regex'])}")
    return SPLITTERS[kind]


OUTCOMES: dict[str, Callable[[Sequence[float]], float]] = {
    # A chain is as good as its weakest step (arXiv 2305.20050 takes the product, arXiv 2312.08935 the minimum).
    "min": min,
    "product": math.prod,
    "last": lambda scores: scores[-1],
    "mean": lambda scores: sum(scores) / len(scores),
}


def outcome_of(grader: str, params: Mapping[str, Any]) -> Callable[[Sequence[float]], float]:
    """The function that `outcome` names. Raises `InputError` for another name."""
    if params["outcome"] not in OUTCOMES:
        raise InputError(f"{grader}: params.outcome is {params['outcome']!r}, expected one of {', '.join(OUTCOMES)}")
    return OUTCOMES[params["outcome"]]


def steps(text: str, answer: str | None, params: Mapping[str, Any]) -> Verdict:  # noqa: ARG001 there is no reference
    """The share of the arithmetic that holds: each step scores 1 when all its `a op b = c` hold, else 0.

    Params: split (lines, blank_lines, numbered, regex with `pattern`), outcome (min, product, last, mean), without
    (1: the score of a step that states no equality). `detail` holds the score of each step. Raises `ValueError` for
    a text without steps.
    """
    chosen = with_defaults("steps", params, STEPS_DEFAULTS)
    parts = splitter("steps", chosen)(text)
    return step_verdict(arithmetic(parts, chosen["without"]), outcome_of("steps", chosen))


def step_verdict(scores: Sequence[float], outcome: Callable[[Sequence[float]], float]) -> Verdict:
    """The outcome of the steps' scores. Raises `ValueError` when there is no step."""
    if not scores:
        raise ValueError("the text has no steps")
    return Verdict(outcome(scores), None, {"steps": list(scores)})


def arithmetic(parts: Sequence[str], without: float = 1.0) -> list[float]:
    """1 for a step whose equalities all hold, 0 for one with a wrong one, `without` for one that states none."""
    return [without if (right := holds(part)) is None else float(right) for part in parts]


def holds(step: str) -> bool | None:
    """Whether every `a op b ... = c` of a step is right; None where it states none.

    * and / before + and -, as one reads; c may be rounded to the places that it shows.
    """
    found = [_right(match) for match in EQUALITY.finditer(step) if not CONTINUES.search(step[: match.start()])]
    return all(found) if found else None


def _right(equality: re.Match[str]) -> bool:
    value = _value(equality["left"])
    shown = equality["right"]
    places = len(shown.rstrip("%").partition(".")[2])
    # Half a unit of the last place that is shown; a whole number is meant exactly.
    allowed = Fraction(1, 2 * 10**places * (100 if shown.endswith("%") else 1)) if places else 0
    return value is not None and abs(value - _number(shown)) <= allowed


def _value(expression: str) -> Fraction | None:
    """The value of numbers joined by + - * /; None for a division by 0."""
    terms: list[Fraction] = []
    for operator, text in TERM.findall(expression):
        value = _number(text)
        if operator in ("", "+", "-"):
            terms.append(-value if operator == "-" else value)
        elif operator in ("/", "÷"):
            if not value:
                return None
            terms[-1] /= value
        else:
            terms[-1] *= value
    return sum(terms, Fraction(0))


def _number(text: str) -> Fraction:
    plain = text.replace(",", "").replace("$", "")
    return Fraction(plain[:-1]) / 100 if plain.endswith("%") else Fraction(plain)


def _stripped(parts: Any) -> list[str]:
    return [part.strip() for part in parts if part.strip()]
