"""Prompts of a template with {slots}: every combination of their words, or some of them drawn without replacement."""

import math
import random
from collections.abc import Iterator, Mapping
from string import Formatter
from typing import Any, NamedTuple

from storage.errors import InputError
from tasks._sources.files import file_digest, locate, store_errors
from tasks._sources.rows import Rejection, Row

DOMAIN = "template"
VERIFIER = ""  # what an answer has to be only the source's own verifier can say
VERSION = "1"
PATHS: tuple[str, ...] = ("word_files",)
KNOWN_PARAMS = ("template", "answer", "words", "word_files", "sample", "seed")
# More than these are meant to be drawn from, not to be written down.
MOST_COMBINATIONS = 10_000_000
LARGEST_RANGE = 2**63 - 1
OWN_FIELDS = ("messages", "answer", "tags", "verifier_params")


class _Plan(NamedTuple):
    """A template whose parameters are right: `words` are the slots in the order in which the template names them."""

    template: str
    answer: str | None
    words: dict[str, list[str]]
    sample: int | None
    seed: int | None

    @property
    def combinations(self) -> int:
        return math.prod(len(words) for words in self.words.values())

    def combination(self, index: int) -> dict[str, str]:
        """The words of one combination: its number in the mixed radix of the slots, the last one changing fastest."""
        chosen = {}
        for slot, words in reversed(self.words.items()):
            index, place = divmod(index, len(words))
            chosen[slot] = words[place]
        return {slot: chosen[slot] for slot in self.words}


def rows(params: dict[str, Any], seed: int) -> Iterator[Row | Rejection]:
    """One prompt per combination, or `params['sample']` of them, in the order of the combinations.

    `words` maps a slot to its words, `word_files` to a text file of them (a line each; blank lines and # comments
    are left out); a word that comes twice counts once. `answer` is a template too. What is drawn follows from
    `params['seed']` (default: the stage's seed) alone. Every slot is a field of the row, for the verifier's
    param_fields, and a tag slot=word.
    """
    plan = _planned(params)
    for index in _drawn(plan, seed):
        chosen = plan.combination(index)
        yield Row("template", index + 1, _fields(plan, chosen))


def digests(params: dict[str, Any]) -> dict[str, str]:
    """The digests of the word files, by slot. Raises `InputError` for wrong parameters and a missing file."""
    _planned(params)
    found = {}
    for slot, path in sorted(params.get("word_files", {}).items()):
        with store_errors(path):
            filesystem, inner = locate(path)
        found[slot] = file_digest(filesystem, inner, path)
    return found


def _fields(plan: _Plan, chosen: dict[str, str]) -> dict[str, Any]:
    answer = None if plan.answer is None else plan.answer.format_map(chosen)
    return {
        **chosen,
        "messages": [{"role": "user", "content": plan.template.format_map(chosen)}],
        "answer": answer,
        "tags": [f"{slot}={word}" for slot, word in chosen.items()],
    }


def _drawn(plan: _Plan, seed: int) -> Iterator[int]:
    total = plan.combinations
    if plan.sample is None or plan.sample >= total:
        yield from range(total)
        return
    # `sample` of a range takes memory for what is drawn, not for what it is drawn from.
    draw = random.Random(seed if plan.seed is None else plan.seed)
    yield from sorted(draw.sample(range(total), plan.sample))


def _planned(params: dict[str, Any]) -> _Plan:
    unknown = sorted(set(params) - set(KNOWN_PARAMS))
    if unknown:
        raise _wrong(f"unknown params {unknown}; there are {list(KNOWN_PARAMS)}")
    template, answer = params.get("template"), params.get("answer")
    if not isinstance(template, str) or not (answer is None or isinstance(answer, str)):
        raise _wrong(
            f"template is {template!r} and answer {answer!r}; expected texts with {{slots}}, answer or nothing"
        )
    slots = _slots("template", template)
    known = _words(params.get("words", {}), params.get("word_files", {}))
    if not slots or set(slots) != set(known):
        raise _wrong(
            f"template has the slots {slots}, and words and word_files have {sorted(known)}; expected the same"
        )
    beyond = sorted(set(_slots("answer", answer or "")) - set(slots))
    if beyond:
        raise _wrong(f"answer has the slots {beyond}, which template hasn't")
    sample, seed = _whole(params, "sample", least=1), _whole(params, "seed", least=0)
    plan = _Plan(template, answer, {slot: known[slot] for slot in slots}, sample, seed)
    most = MOST_COMBINATIONS if sample is None else LARGEST_RANGE
    if plan.combinations > most:
        raise _wrong(
            f"{plan.combinations:,} combinations, at most {most:,}; set sample to draw some, or give fewer words"
        )
    return plan


def _slots(param: str, text: str) -> list[str]:
    """The names in braces, in the order of their first use. Raises `InputError` for anything but plain names."""
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise _wrong(f"{param} {text!r}: {error}; a brace that is meant as such is doubled: {{{{") from error
    names = []
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if not name.isidentifier() or form or conversion or name in OWN_FIELDS:
            raise _wrong(f"{param}: slot {name!r} is no plain name such as {{topic}}, or is one of {list(OWN_FIELDS)}")
        names.append(name)
    return list(dict.fromkeys(names))


def _words(given: object, files: object) -> dict[str, list[str]]:
    if not isinstance(given, dict) or not isinstance(files, dict):
        raise _wrong("words maps a slot to a list of words, word_files to the path of a text file")
    twice = sorted(given.keys() & files.keys())
    if twice:
        raise _wrong(f"slots {twice} have words and a file; give one of them")
    found = {slot: _inline(slot, words) for slot, words in given.items()}
    found |= {slot: _read_words(slot, path) for slot, path in files.items()}
    return {slot: list(dict.fromkeys(words)) for slot, words in found.items()}


def _inline(slot: str, words: object) -> list[str]:
    plain = isinstance(words, list) and all(
        isinstance(word, str | int | float) and not isinstance(word, bool) for word in words
    )
    if not plain or not words:
        raise _wrong(f"words.{slot} is {words!r}; expected a list of texts or numbers (put true, yes and no in quotes)")
    return [str(word) for word in words]  # type: ignore[attr-defined]


def _read_words(slot: str, path: object) -> list[str]:
    if not isinstance(path, str):
        raise _wrong(f"word_files.{slot} is {path!r}; expected the path of a text file")
    with store_errors(path):
        filesystem, inner = locate(path)
        content = filesystem.cat_file(inner)
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _wrong(f"{path}:{line}: byte {content[error.start]:#04x} is not UTF-8; save the file as UTF-8") from error
    words = [line for line in lines if line and not line.startswith("#")]
    if not words:
        raise _wrong(f"{path}: holds no word; expected one a line")
    return words


def _whole(params: Mapping[str, Any], name: str, least: int) -> int | None:
    value = params.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
        return value
    raise _wrong(f"{name} is {value!r}; expected a whole number from {least}, or nothing")


def _wrong(problem: str) -> InputError:
    return InputError(f"generator template: {problem}")
