"""Texts compared with answers and patterns, and their length."""

import functools
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import regex as interruptible

from storage.errors import InputError
from tasks.grading.sample import Sample
from tasks.grading.verdict import Verdict, checked_flags, checked_param, is_whole, read_once, required_answer
from tasks.grading.verdict import with_defaults as over

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = interruptible.compile(r"[\p{P}$+<=>^`|~]+")
UNITS: dict[str, Callable[[Sample], int]] = {
    "words": lambda sample: len(sample.text.split()),
    "tokens": lambda sample: sample.tokens,
    "characters": lambda sample: len(sample.text),
}


class _Match(NamedTuple):
    """How two texts are made comparable."""

    several: bool
    last_line: bool
    ignore_case: bool
    articles: bool = True
    punctuation: bool = True
    nfkc: bool = False


class _Pattern(NamedTuple):
    pattern: Any
    timeout_s: float


def exact_match(text: str, answer: str | None, params: Mapping[str, Any]) -> Verdict:
    """1 when text and answer are equal up to blanks (and case, unless `ignore_case` is false), else 0.

    Params: ignore_case (true), last_line (false: compare the whole text), several (false; true: the answer is a JSON
    list of accepted answers).
    """
    return _compared("exact_match", text, answer, _exact(params))


def normalised_match(text: str, answer: str | None, params: Mapping[str, Any]) -> Verdict:
    """1 when text and answer are equal once normalised as for SQuAD (Rajpurkar 2016, evaluation script), else 0.

    NFKC, then case, punctuation (removed), the articles a, an and the (removed) and blanks are made alike. Meant for
    words: -3 and 3 are alike too.
    Params, all true: nfkc, ignore_case, ignore_punctuation, ignore_articles; last_line, several as for exact_match.
    """
    return _compared("normalised_match", text, answer, _normalised(params))


def regex(text: str, answer: str | None, params: Mapping[str, Any]) -> Verdict:
    """1 when `pattern` is found in the text and, where the prompt has an answer, its first group equals it.

    Params: pattern (Python's syntax; required), ignore_case (false), timeout_s (1.0). Raises `InputError` for a bad
    pattern, `TimeoutError`, which fails the row's grade, when the search backtracks for longer than `timeout_s`.
    """
    pattern, timeout_s = _pattern(params)
    found = pattern.search(text, timeout=timeout_s)
    if found is None or answer is None or not pattern.groups:
        return Verdict(float(found is not None), found is not None)
    passed = (found.group(1) or "").strip() == answer.strip()
    return Verdict(float(passed), passed, {"found": found.group(1)})


def length(sample: Sample) -> Verdict:
    """1 within every bound; outside, the share of the nearer bound that was met, the worst of the units.

    Params: min_words, max_words, min_tokens, max_tokens, min_characters, max_characters; at least one. With an upper
    bound alone the lower one is 1. Tokens are those that the policy sampled.
    """
    found, score = {}, 1.0
    for unit, low, high in _bounds(sample.params):
        count = UNITS[unit](sample)
        found[unit] = count
        score = min(score, count / low if count < low else high / count if count > high else 1.0)
    return Verdict(score, score == 1.0, found)


def _compared(verifier: str, text: str, answer: str | None, how: _Match) -> Verdict:
    expected, words = _expected(verifier, required_answer(verifier, answer), how)
    if how.last_line:
        text = (text.strip().splitlines() or [""])[-1]
    if not how.punctuation or not how.articles or len(text.split(None, words)) <= words:
        passed = _comparable(text, how) in expected
    else:
        passed = False  # it has more words than any accepted answer
    return Verdict(float(passed), passed)


@functools.lru_cache(maxsize=4096)
def _expected(verifier: str, answer: str, how: _Match) -> tuple[frozenset[str], int]:
    """The accepted answers, comparable, and the words of the longest.

    Raises `ValueError` for an answer that is no JSON list of texts where several are accepted.
    """
    accepted = _accepted(verifier, answer) if how.several else [answer]
    comparable = frozenset(_comparable(each, how) for each in accepted)
    return comparable, max(len(each.split()) for each in comparable)


def _accepted(verifier: str, answer: str) -> list[str]:
    try:
        accepted = json.loads(answer)
    except ValueError as error:
        raise ValueError(f"verifier {verifier}: the answer {answer!r} is no JSON list: {error}") from error
    if not isinstance(accepted, list) or not accepted or not all(isinstance(each, str) for each in accepted):
        raise ValueError(f"verifier {verifier}: the answer {answer!r} is no JSON list of texts")
    return accepted


def _comparable(text: str, how: _Match) -> str:
    if how.nfkc:
        text = unicodedata.normalize("NFKC", text)
    if how.ignore_case:
        text = text.casefold()
    if not how.punctuation:
        text = PUNCTUATION.sub("", text)
    if not how.articles:
        text = ARTICLES.sub(" ", text)
    return " ".join(text.split())


@read_once
def _exact(params: Mapping[str, Any]) -> _Match:
    chosen = over("exact_match", params, {"ignore_case": True, "last_line": False, "several": False})
    checked_flags("exact_match", chosen, *chosen)
    return _Match(**chosen)


@read_once
def _normalised(params: Mapping[str, Any]) -> _Match:
    switches = ("nfkc", "ignore_case", "ignore_punctuation", "ignore_articles")
    chosen = over("normalised_match", params, {**dict.fromkeys(switches, True), "last_line": False, "several": False})
    checked_flags("normalised_match", chosen, *chosen)
    return _Match(
        several=chosen["several"],
        last_line=chosen["last_line"],
        ignore_case=chosen["ignore_case"],
        articles=not chosen["ignore_articles"],
        punctuation=not chosen["ignore_punctuation"],
        nfkc=chosen["nfkc"],
    )


@read_once
def _pattern(params: Mapping[str, Any]) -> _Pattern:
    chosen = over("regex", params, {"pattern": None, "ignore_case": False, "timeout_s": 1.0})
    checked_flags("regex", chosen, "ignore_case")
    timeout_s = chosen["timeout_s"]
    checked_param("regex", "timeout_s", timeout_s, isinstance(timeout_s, int | float) and timeout_s > 0, "seconds")
    try:
        # Python's own `re` can't be interrupted and holds every thread while it backtracks.
        pattern = interruptible.compile(chosen["pattern"], interruptible.IGNORECASE if chosen["ignore_case"] else 0)
    except (interruptible.error, TypeError) as error:
        raise InputError(f"verifier regex: params.pattern {chosen['pattern']!r}: {error}") from error
    return _Pattern(pattern, float(timeout_s))


@read_once
def _bounds(params: Mapping[str, Any]) -> tuple[tuple[str, int, float], ...]:
    """(unit, low, high) of every unit that has a bound."""
    names = [f"{side}_{unit}" for unit in UNITS for side in ("min", "max")]
    chosen = over("length", params, dict.fromkeys(names))
    bounds = []
    for unit in UNITS:
        low, high = chosen[f"min_{unit}"], chosen[f"max_{unit}"]
        if low is None and high is None:
            continue
        first, last = (1 if low is None else low), (float("inf") if high is None else high)
        if not is_whole(first) or not (high is None or is_whole(high, 1)) or first > last:
            raise InputError(
                f"verifier length: expected whole numbers 0 <= min_{unit} <= max_{unit}, found {low} and {high}"
            )
        bounds.append((unit, first, last))
    if not bounds:
        raise InputError(f"verifier length: no bound is given; expected one of {', '.join(names)}")
    return tuple(bounds)
