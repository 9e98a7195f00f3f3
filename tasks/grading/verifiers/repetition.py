"""How often a text says the same again."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tasks.grading.verdict import Verdict, checked_param, is_share, is_whole, read_once, with_defaults


class _Limit(NamedTuple):
    n: int
    limit: float
    characters: bool


def repetition(text: str, answer: str | None, params: Mapping[str, Any]) -> Verdict:  # noqa: ARG001 there is no answer
    """1 up to `limit`, then falling in a line to 0 where every n-gram but one repeats an earlier one.

    The repeated share is 1 - distinct-n (Li 2016, arXiv:1510.03055): of all n-grams those seen before. Words are
    compared without case. A text shorter than n repeats nothing.
    Params: n (3), limit (0.2: share that may repeat, below 1), unit ("words", or "characters" for languages without
    blanks).
    """
    chosen = _limit(params)
    parts = text.casefold() if chosen.characters else text.casefold().split()
    total = max(0, len(parts) - chosen.n + 1)
    distinct = len(set(zip(*(parts[start:] for start in range(chosen.n)), strict=False)))
    repeated = 1 - distinct / total if total else 0.0
    score = 1 - max(0.0, repeated - chosen.limit) / (1 - chosen.limit)
    return Verdict(score, repeated <= chosen.limit, {"repeated": round(repeated, 4), "ngrams": total})


@read_once
def _limit(params: Mapping[str, Any]) -> _Limit:
    chosen = with_defaults("repetition", params, {"n": 3, "limit": 0.2, "unit": "words"})
    checked_param("repetition", "n", chosen["n"], is_whole(chosen["n"], 1), "a whole number from 1 on")
    fits = is_share(chosen["limit"]) and chosen["limit"] < 1
    checked_param("repetition", "limit", chosen["limit"], fits, "a share in [0, 1)")
    checked_param(
        "repetition", "unit", chosen["unit"], chosen["unit"] in ("words", "characters"), "words or characters"
    )
    return _Limit(chosen["n"], chosen["limit"], chosen["unit"] == "characters")
