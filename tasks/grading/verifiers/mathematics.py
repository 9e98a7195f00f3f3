"""Mathematical equality, by math-verify (Hugging Face): LaTeX or plain, numbers, expressions, sets, matrices."""

import functools
import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from tasks.grading.verdict import Verdict, checked_flags, checked_param, is_whole, read_once, required_answer
from tasks.grading.verdict import with_defaults as over
from tasks.grading.verifiers.sizes import check_size

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
MARK = re.compile(r"####[ \t]*([^\n<]+)")
# A number on its own: currency before it and a unit of words after it are left out.
PLAIN = re.compile(
    r"\\?\$?\s*([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d{1,3})?)"
    r"(?:\s+(?!sin|cos|tan|log|exp|sqrt|and\b|or\b)[A-Za-z]{2,}(?: [A-Za-z]{2,})*)?\.?"
)
BOLD = re.compile(r"(?<![\w)\]}])\*\*([^*\n]+)\*\*(?![\w(])")
EXCLAMATION = re.compile(r"!+(?=\s+[A-Z]|\s*$)")
# The end of a text without a mark in which the last expression is looked for, in characters.
TAIL = 600


def mathematical(text: str, answer: str | None, params: Mapping[str, Any]) -> Verdict:
    """1 when the text's final answer equals the reference mathematically, else 0.

    The final answer stands in the last \\boxed{}, else after the last ####, else it is the last number or expression
    of the text (in its last 600 characters). A reference is read in the same way; without a mark it is taken whole.
    Params: decimals (6: those in which numbers have to agree), strict (true: variables and the kinds of sets and
    tuples have to agree).

    math-verify limits its time by SIGALRM, which works in a process's main thread only: those limits are off
    (`parsing_timeout=None`, `timeout_seconds=None`), so this runs in any thread. Powers and factorials too large to
    be written out are refused before they are computed: `ValueError`, which fails the row's grade. What else takes
    long (a simplification) isn't interrupted here; a worker process with a time limit does that.
    """
    decimals, strict = _options(params)
    reference = required_answer("math", answer)
    expected = _marked(reference) or reference
    candidate = _marked(text)
    if candidate is not None:
        plain, wanted = _plain(candidate), _plain(expected)
        if plain is not None and wanted is not None:
            passed = round(Fraction(plain), decimals) == round(Fraction(wanted), decimals)
            return Verdict(float(passed), passed, {"found": candidate.strip()})
    gold = _parsed(expected, whole=True)
    if not gold:
        raise ValueError(f"verifier math: the answer {answer!r} holds no expression")
    found = _parsed(_end(text), whole=False) if candidate is None else _parsed(candidate, whole=True)
    if not found:
        return Verdict(0.0, passed=False, detail={"found": None})
    passed = _library().verify(gold, found, float_rounding=decimals, strict=strict, timeout_seconds=None)
    return Verdict(float(passed), bool(passed), {"found": str(found[-1])})


def _marked(text: str) -> str | None:
    """What stands in the last box whose brace is closed, else after the last ####."""
    for box in reversed(list(BOX.finditer(text))):
        depth = 1
        for place in range(box.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[box.end() : place]
    marks = MARK.findall(text)
    return marks[-1].strip() if marks else None


def _end(text: str) -> str:
    """The end of a text from a blank on, without what is prose's own: bold marks and exclamation marks."""
    end = text[-TAIL:]
    if len(text) > TAIL:
        end = end[end.find(" ") + 1 :]
    return EXCLAMATION.sub(".", BOLD.sub(r"\1", end))


def _plain(candidate: str) -> Decimal | None:
    """The candidate as a number, where it is nothing more."""
    found = PLAIN.fullmatch(candidate.strip().strip("$").strip())
    if found is None or not any(map(str.isdecimal, found[1])):
        return None
    return Decimal(found[1].replace(",", ""))


@functools.lru_cache(maxsize=1024)
def _parsed(text: str, *, whole: bool) -> list[Any]:
    """math-verify's readings of a text: an expression, then what it was written as."""
    text = text.strip()
    check_size(text)
    plain = _plain(text) if whole else None
    if plain is not None:
        text = f"{plain:f}"
    library = _library()
    if whole and not (text.startswith(("$", "\\(", "\\[")) and len(text) > 1 and text.endswith(("$", ")", "]"))):
        text = f"${text}$"
    return library.parse(text, parsing_timeout=None)


@functools.lru_cache(maxsize=1)
def _library() -> Any:
    import math_verify
    from math_verify import grader, parser

    # Without its time limits it warns once; the limits are off on purpose.
    grader.TIMEOUT_WARNING_SHOWN = parser.TIMEOUT_WARNING_SHOWN = True
    return math_verify


@read_once
def _options(params: Mapping[str, Any]) -> tuple[int, bool]:
    chosen = over("math", params, {"decimals": 6, "strict": True})
    checked_flags("math", chosen, "strict")
    decimals = chosen["decimals"]
    checked_param("math", "decimals", decimals, is_whole(decimals) and decimals <= 15, "a whole number from 0 to 15")
    return decimals, chosen["strict"]
