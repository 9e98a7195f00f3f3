"""The final answer of a text, as a string that compares equal for equal answers."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import regex as interruptible

from storage.errors import InputError
from tasks.grading.verifiers.numbers import final_number

Extractor = Callable[[str], str | None]
PATTERN_S = 1.0
BOXED = "\\boxed{"


def boxed(text: str) -> str | None:
    """What the last complete \\boxed{} holds, braces inside it included; blanks at its ends are cut."""
    for start in reversed([found.end() for found in re.finditer(re.escape(BOXED), text)]):
        depth = 1
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                return text[start:place].strip() or None
    return None


def number(text: str) -> str | None:
    """The final number, 12 for 12.0 and 1,200 for 1200."""
    found = final_number(text)
    if found is None:
        return None
    return f"{found.normalize():f}" if found else "0"


def normalised(text: str) -> str | None:
    """The whole text with single blanks."""
    return " ".join(text.split()) or None


def final(text: str) -> str | None:
    """What is boxed (as a number where it is one), else the last number, else the whole text."""
    inside = boxed(text)
    if inside is not None:
        return number(inside) if _is_number(inside) else inside
    return number(text) or normalised(text)


EXTRACTORS: dict[str, Extractor] = {"final": final, "number": number, "boxed": boxed, "text": normalised}


def extractor(grader: str, params: Mapping[str, Any]) -> Extractor:
    """The function that `answer` names. `regex` takes `pattern`'s first group, else the whole match, of the last match.

    Raises `InputError` for another name or a bad pattern; with `regex` the function raises `TimeoutError` when a text
    keeps the pattern busy for longer than a second.
    """
    kind, fold = params["answer"], bool(params["ignore_case"])
    if kind == "regex":
        return _folding(_by_pattern(grader, params["pattern"], fold), fold)
    if kind not in EXTRACTORS:
        known = ", ".join([*EXTRACTORS, "regex"])
        raise InputError(f"{grader}: params.answer is {kind!r}, expected one of {known}")
    return _folding(EXTRACTORS[kind], fold)


def _by_pattern(grader: str, pattern: Any, ignore_case: bool) -> Extractor:
    try:
        # Python's own `re` can't be interrupted and holds every thread while it backtracks.
        compiled = interruptible.compile(pattern, interruptible.IGNORECASE if ignore_case else 0)
    except (interruptible.error, TypeError) as error:
        raise InputError(f"{grader}: params.pattern {pattern!r}: {error}") from error

    def extract(text: str) -> str | None:
        matches = list(compiled.finditer(text, timeout=PATTERN_S))
        found = (matches[-1].group(1) if compiled.groups else matches[-1].group()) if matches else None
        return normalised(found or "")

    return extract


def _folding(extract: Extractor, fold: bool) -> Extractor:
    def folded(text: str) -> str | None:
        found = extract(text)
        return found.casefold() if found is not None and fold else found

    return folded


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-$\s\d.,]*\d[\d.,]*\s*", text) is not None
