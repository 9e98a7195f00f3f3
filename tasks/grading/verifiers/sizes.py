"""What a short text would make a computer algebra system compute for hours, found before it is computed."""

import re
from itertools import pairwise

LONGEST = 1000
LARGEST_EXPONENT = 10_000
LARGEST_FACTORIAL = 1_000
POWER = re.compile(r"\s*(?:\^|\*\*)\s*")
NUMBER_TO_A_POWER = re.compile(r"[\d)}]\s*(?:\^|\*\*)")
FACTORIAL = re.compile(r"(\S)\s*!(?!=)")
OPERAND = re.compile(r"-?\d+(?:\.\d+)?|\\?[A-Za-z]+|.", re.DOTALL)
PAIRS = {"{": "}", "(": ")"}


def check_size(text: str) -> None:
    """Raises `ValueError` for an expression with towers of powers or with very large powers and factorials.

    A power of a number or of a bracket may have exponents whose product is 10,000, no power of numbers among them;
    a factorial is that of a number up to 1,000.
    """
    if len(text) > LONGEST:
        raise ValueError(f"the expression has {len(text)} characters, at most {LONGEST} are read")
    product, stop_before = 1, -1
    for power in POWER.finditer(text):
        operand, stop = _operand(text, power.end())
        if power.start() == stop_before or NUMBER_TO_A_POWER.search(operand):
            raise ValueError("the expression is a tower of powers, which is not computed")
        stop_before = stop
        if power.start() and text[power.start() - 1] in "0123456789)}]":
            product *= max([1, *(int(digits[:8]) for digits in re.findall(r"\d+", operand))])
    if product > LARGEST_EXPONENT:
        raise ValueError(f"the exponents multiply to {product}, at most {LARGEST_EXPONENT} is computed")
    _check_factorials(text)


def _check_factorials(text: str) -> None:
    places = [found.start(1) for found in FACTORIAL.finditer(text)]
    for place in places:
        digits = re.search(r"\d+$", text[: place + 1])
        if (digits and int(digits[0][:8]) > LARGEST_FACTORIAL) or (text[place] in ")}" and _has_digits(text, place)):
            raise ValueError("the expression has a factorial too large to be computed")
    if any(second - first == 1 for first, second in pairwise(places)):
        raise ValueError("the expression has a factorial of a factorial, which is not computed")


def _has_digits(text: str, place: int) -> bool:
    return any(map(str.isdecimal, text[:place]))


def _operand(text: str, start: int) -> tuple[str, int]:
    """The exponent that begins at `start`: a bracket with what it holds, or one number or name; and where it ends."""
    opening = text[start : start + 1]
    if opening not in PAIRS:
        found = OPERAND.match(text, start)
        return (found[0], found.end()) if found else ("", start)
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == opening) - (text[place] == PAIRS[opening])
        if depth == 0:
            return text[start : place + 1], place + 1
    return text[start:], len(text)
