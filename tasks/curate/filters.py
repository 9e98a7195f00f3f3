"""Prompts that are good rows and not wanted: by length, by language, by patterns. Pure but for the tokenizer.

screen = open_filters(config, count_tokens)
reasons = screen(prompts)          # a Rejection, or None where every filter keeps the prompt
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from storage.errors import InputError
from tasks._maths.languages import known_languages, letters_of, ranked_languages
from tasks._sources.rows import Rejection, excerpt
from tasks.curate.filters_config import FiltersConfig, LanguageFilter, LengthFilter, SafetyFilter
from tasks.curate.patterns import compiled, patterns_digest

Prompt = Mapping[str, Any]
Messages = Sequence[Mapping[str, str]]
TokenCounter = Callable[[Sequence[Messages]], list[int]]
"""Chats -> tokens of each as the model reads it."""
SEARCH_S = 1.0


class Finding(NamedTuple):
    """Why a filter doesn't want a prompt."""

    reason: str
    found: str
    expected: str


Filter = Callable[[Sequence[Prompt]], list[Finding | None]]
Screen = Callable[[Sequence[Prompt]], list[Rejection | None]]


def open_filters(config: FiltersConfig, count_tokens: TokenCounter | None = None) -> Screen:
    """What tells of each prompt of a batch whether it is wanted; the filter that is cheapest is asked first.

    Raises `InputError` for an unknown language, a file of patterns that can't be used, or tokens without a tokenizer.
    """
    filters: list[Filter] = []
    if config.length is not None:
        filters += _length_filters(config.length, count_tokens)
    if config.safety is not None:
        filters.append(_safety_filter(config.safety))
    if config.language is not None:
        filters.append(_language_filter(config.language))

    def screen(prompts: Sequence[Prompt]) -> list[Rejection | None]:
        reasons: list[Rejection | None] = [None] * len(prompts)
        left = list(range(len(prompts)))
        for filter_ in filters:
            findings = filter_([prompts[index] for index in left])
            for index, finding in zip(left, findings, strict=True):
                if finding is not None:
                    reasons[index] = _rejection(prompts[index], finding)
            left = [index for index in left if reasons[index] is None]
        return reasons

    return screen


def check_filters(config: FiltersConfig) -> None:
    """Opens the filters without a prompt. Raises `InputError` as `open_filters` does."""
    open_filters(config, lambda chats: [0] * len(chats))


def filters_content(config: FiltersConfig) -> list[str]:
    """What decides the filters besides their configuration, for the fingerprint: a file's digest."""
    digest = patterns_digest(config.safety) if config.safety is not None else None
    return [] if digest is None else [digest]


def text_of(prompt: Prompt) -> str:
    """The turns of a prompt without its system message, a line break between them."""
    return "\n".join(turn["content"] for turn in prompt["messages"] if turn["role"] != "system")


def _length_filters(config: LengthFilter, count_tokens: TokenCounter | None) -> list[Filter]:
    counters: dict[str, Callable[[Sequence[Prompt]], list[int]]] = {
        "characters": lambda prompts: [len(text_of(prompt)) for prompt in prompts],
        "words": lambda prompts: [len(text_of(prompt).split()) for prompt in prompts],
    }
    if config.counts_tokens:
        if count_tokens is None:
            raise InputError("curate.filters.length counts tokens, and there is no tokenizer; use words or characters")
        counter = count_tokens
        counters["tokens"] = lambda prompts: counter([prompt["messages"] for prompt in prompts])
    bounded = {unit: config.bounds(unit) for unit in counters}
    return [_bounded(unit, counters[unit], *bounds) for unit, bounds in bounded.items() if bounds != (None, None)]


def _bounded(unit: str, count: Callable[[Sequence[Prompt]], list[int]], low: int | None, high: int | None) -> Filter:
    wanted = f"{'up' if low is None else low} to {high} {unit}" if high is not None else f"at least {low} {unit}"

    def check(prompts: Sequence[Prompt]) -> list[Finding | None]:
        findings: list[Finding | None] = []
        for size in count(prompts):
            short, long = low is not None and size < low, high is not None and size > high
            reason = "too_short" if short else "too_long"
            findings.append(Finding(reason, f"{size} {unit}", wanted) if short or long else None)
        return findings

    return check


def _language_filter(config: LanguageFilter) -> Filter:
    unknown = sorted(set(config.languages) - known_languages())
    if unknown:
        known = ", ".join(sorted(known_languages()))
        raise InputError(f"curate.filters.language: unknown languages {unknown}; there are {known}")
    wanted, expected = set(config.languages), " or ".join(config.languages)
    if config.min_share:
        expected += f", together at least {config.min_share:g}"

    def finding(text: str) -> Finding | None:
        letters = letters_of(text)
        if letters < config.min_letters:
            undecided = Finding("language", f"{letters} letters", f"at least {config.min_letters} letters to tell by")
            return undecided if config.undecided == "drop" else None
        ranked = ranked_languages(text)
        share = sum(probability for name, probability in ranked if name in wanted)
        if ranked[0][0] in wanted and share >= config.min_share:
            return None
        return Finding("language", f"{ranked[0][0]} {ranked[0][1]:.2f}: {excerpt(text)}", expected)

    return lambda prompts: [finding(text_of(prompt)) for prompt in prompts]


def _safety_filter(config: SafetyFilter) -> Filter:
    patterns = compiled(config)

    def finding(prompt: Prompt) -> Finding | None:
        text = text_of(prompt)
        for name, pattern in patterns.items():
            try:
                found = pattern.search(text, timeout=SEARCH_S)
            except TimeoutError:
                raise InputError(
                    f"curate.filters.safety: pattern {name!r} searched {prompt['source']} for {SEARCH_S:g} s; write it "
                    "without nested repeats"
                ) from None
            if found is not None:
                return Finding(f"safety:{name}", excerpt(found.group()), f"nothing that {name} matches")
        return None

    return lambda prompts: [finding(prompt) for prompt in prompts]


def _rejection(prompt: Prompt, finding: Finding) -> Rejection:
    path, _, row = prompt["source"].rpartition(":")
    return Rejection(path, int(row), finding.reason, "messages", finding.found, finding.expected)
