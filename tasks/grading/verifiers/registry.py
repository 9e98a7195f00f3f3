"""The verifiers by name: pure functions of a rollout's text, the prompt's answer and parameters.

One's own is a function of the same form, named `package.module:function` in the configuration or in a prompt.
"""

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from storage.errors import InputError
from storage.plugins import import_named
from tasks.grading.sandbox import grader as sandboxed
from tasks.grading.verdict import Verdict, VerifierFunction, required_answer, with_defaults
from tasks.grading.verifiers.haiku import haiku
from tasks.grading.verifiers.steps import steps

NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+")
MARKED = re.compile(r"####\s*\$?\s*(\S+)|\\boxed\{([^{}]*)\}")


class Verifier(NamedTuple):
    """A verifier and the version of its rule: raise it when the same text should get another score."""

    function: VerifierFunction
    version: str


def exact_match(text: str, answer: str | None, params: Mapping[str, Any]) -> Verdict:
    """1 when text and answer are equal up to blanks (and case, unless `ignore_case` is false), else 0.

    Params: ignore_case (true), last_line (false: compare the whole text).
    """
    chosen = with_defaults("exact_match", params, {"ignore_case": True, "last_line": False})
    expected = required_answer("exact_match", answer)
    lines = text.strip().splitlines() or [""]
    found = lines[-1] if chosen["last_line"] else text
    found, expected = " ".join(found.split()), " ".join(expected.split())
    if chosen["ignore_case"]:
        found, expected = found.casefold(), expected.casefold()
    return Verdict(float(found == expected), found == expected)


def number(text: str, answer: str | None, params: Mapping[str, Any]) -> Verdict:
    """1 when the text's final number equals the answer's, else 0.

    The final number stands after #### or in \\boxed{}; without either it is the last number (GSM8K's convention).
    Params: tolerance (0: relative to the answer). Raises `ValueError` when the answer holds no number.
    """
    chosen = with_defaults("number", params, {"tolerance": 0})
    expected = final_number(required_answer("number", answer))
    if expected is None:
        raise ValueError(f"verifier number: the answer {answer!r} holds no number")
    found = final_number(text)
    allowed = abs(expected) * Decimal(str(chosen["tolerance"]))
    passed = found is not None and abs(found - expected) <= allowed
    return Verdict(float(passed), passed, {"found": None if found is None else str(found), "expected": str(expected)})


def regex(text: str, answer: str | None, params: Mapping[str, Any]) -> Verdict:
    """1 when `pattern` is found in the text and, where the prompt has an answer, its first group equals it.

    Params: pattern (Python's syntax; required), ignore_case (false). Raises `InputError` for a bad pattern.
    """
    chosen = with_defaults("regex", params, {"pattern": None, "ignore_case": False})
    try:
        pattern = re.compile(chosen["pattern"], re.IGNORECASE if chosen["ignore_case"] else 0)
    except (re.error, TypeError) as error:
        raise InputError(f"verifier regex: params.pattern {chosen['pattern']!r}: {error}") from error
    found = pattern.search(text)
    if found is None or answer is None or not pattern.groups:
        return Verdict(float(found is not None), found is not None)
    passed = (found.group(1) or "").strip() == answer.strip()
    return Verdict(float(passed), passed, {"found": found.group(1)})


def length(text: str, answer: str | None, params: Mapping[str, Any]) -> Verdict:  # noqa: ARG001 there is no answer
    """1 between `min_words` and `max_words`; outside, the share of the nearer bound that was met.

    Params: min_words (1), max_words (required).
    """
    chosen = with_defaults("length", params, {"min_words": 1, "max_words": None})
    low, high = chosen["min_words"], chosen["max_words"]
    if not isinstance(low, int) or not isinstance(high, int) or not 0 <= low <= high or not high:
        raise InputError(f"verifier length: expected whole numbers 0 <= min_words <= max_words, found {low} and {high}")
    words = len(text.split())
    score = words / low if words < low else high / words if words > high else 1.0
    return Verdict(score, low <= words <= high, {"words": words})


VERIFIERS: dict[str, Verifier] = {
    "haiku": Verifier(haiku, "1"),
    "exact_match": Verifier(exact_match, "1"),
    "number": Verifier(number, "1"),
    "regex": Verifier(regex, "1"),
    "length": Verifier(length, "1"),
    sandboxed.NAME: Verifier(sandboxed.python_code, sandboxed.VERSION),
    "steps": Verifier(steps, "1"),
}


def resolve_verifier(name: str) -> Verifier:
    """The verifier of that name or dotted path (its version: the function's `version`, else '0').

    Raises `InputError` when there is none.
    """
    if name in VERIFIERS:
        return VERIFIERS[name]
    if ":" not in name:
        raise InputError(f"no verifier {name!r}; there are {', '.join(VERIFIERS)}, or give package.module:function")
    function = import_named("verifier", name)
    return Verifier(function, str(getattr(function, "version", "0")))


def final_number(text: str) -> Decimal | None:
    """The number after the last #### or in the last \\boxed{}, else the last number of the text."""
    marked = MARKED.findall(text)
    numbers = NUMBER.findall("".join(marked[-1])) if marked else NUMBER.findall(text)
    if not numbers:
        return None
    try:
        return Decimal(numbers[-1].replace(",", ""))
    except InvalidOperation:
        return None
