"""The haiku verifier: three lines of 5, 7 and 5 syllables, with partial credit for each part."""

from collections.abc import Mapping, Sequence
from typing import Any

from storage.errors import InputError
from tasks.grading.verdict import Verdict, with_defaults
from tasks.grading.verifiers.syllables import is_word, line_counts, words_of

LINE_WEIGHT, SYLLABLE_WEIGHT = 0.4, 0.6
# Shares of distinct and of known words from which nothing is taken off: Issa's "The world of dew" has 0.67.
ENOUGH_DISTINCT, ENOUGH_KNOWN = 0.6, 0.7
META_WORDS = ("haiku", "syllable", "syllables")
DEFAULTS = {"pattern": (5, 7, 5), "meta_words": META_WORDS}


def haiku(text: str, answer: str | None, params: Mapping[str, Any]) -> Verdict:  # noqa: ARG001 there is no answer
    """(0.4 x lines + 0.6 x syllables) x plain language, in [0, 1]; passes on exactly the pattern.

    lines: 1 - |lines - 3| / 3, never below 0. syllables: mean over the three lines of 1 - |found - target| / target,
    never below 0, times 3 / lines where there are more. A line that repeats an earlier one or speaks about the task
    (`meta_words`) counts no syllables. Plain language: 1, less when words repeat or aren't words.
    Params: pattern (syllables per line), meta_words.
    """
    chosen = with_defaults("haiku", params, DEFAULTS)
    pattern, meta_words = _pattern(chosen["pattern"]), frozenset(chosen["meta_words"])
    lines = [words for line in text.splitlines() if (words := words_of(line))]
    found = _syllables(lines, pattern, meta_words)
    line_score = max(0.0, 1 - abs(len(lines) - len(pattern)) / len(pattern))
    shares = [max(0.0, 1 - abs(count - target) / target) for count, target in zip(found, pattern, strict=False)]
    crowding = min(1.0, len(pattern) / len(lines)) if lines else 0.0
    syllable_score = sum(shares) / len(pattern) * crowding
    plain = _plain_language([word for words in lines for word in words])
    score = (LINE_WEIGHT * line_score + SYLLABLE_WEIGHT * syllable_score) * plain
    detail = {"lines": len(lines), "syllables": found, "plain_language": round(plain, 4)}
    return Verdict(score, passed=len(lines) == len(pattern) and found == list(pattern) and plain == 1.0, detail=detail)


def _pattern(value: Sequence[int]) -> tuple[int, ...]:
    whole = all(isinstance(target, int) and target > 0 for target in value)
    if not value or not whole:
        raise InputError(f"verifier haiku: params.pattern is {value!r}; expected syllables per line such as [5, 7, 5]")
    return tuple(value)


def _syllables(lines: list[list[str]], pattern: tuple[int, ...], meta_words: frozenset[str]) -> list[int]:
    """Syllables of the first lines, read in the way that fits the pattern best."""
    found = []
    for index, (words, target) in enumerate(zip(lines, pattern, strict=False)):
        if words in lines[:index] or not meta_words.isdisjoint(words):
            found.append(0)
        else:
            found.append(min(line_counts(words), key=lambda count: (abs(count - target), count)))
    return found


def _plain_language(words: list[str]) -> float:
    if not words:
        return 0.0
    distinct = len(set(words)) / len(words)
    known = sum(map(is_word, words)) / len(words)
    return min(1.0, distinct / ENOUGH_DISTINCT) * min(1.0, known / ENOUGH_KNOWN)
