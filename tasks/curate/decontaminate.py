"""Decontamination: prompts that repeat n words in a row of an evaluation set are set aside.

N-gram overlap as in Brown et al. 2020, appendix C: 13 words by default, 8 finds more. A text of an evaluation set with
fewer words than that is looked for as a whole prompt.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from storage.errors import InputError
from tasks._maths.words import Hashes, Places, Ragged, hashed_words, ngrams, whole_texts, words_of
from tasks._sources.fields import UnusableField, checked_turns, normal_text, present
from tasks._sources.files import file_digests, source_files
from tasks._sources.reading import check_columns, raise_together, read_file
from tasks._sources.rows import Rejection, Row
from tasks.curate.dedup_config import EvaluationSetConfig
from tasks.curate.duplicates import TEXTS_AT_A_TIME, chat_text

SHOWN_WORDS = 40


@dataclass(frozen=True)
class Overlap:
    """A prompt that repeats a text: its index, and where and what it repeats."""

    text: int
    found: str
    expected: str


@dataclass(frozen=True)
class EvaluationSet:
    """The n-grams of a set, sorted, each with the first row that has it; and its shorter texts, hashed whole."""

    name: str
    n: int
    grams: Hashes
    gram_rows: Places
    wholes: Hashes
    whole_rows: Places

    def overlaps(self, texts: Sequence[str], words: Ragged) -> Iterator[Overlap]:
        """The texts that repeat `n` words in a row of this set, or are one of its shorter texts."""
        grams = ngrams(words, self.n)
        hits = _known(self.grams, grams.values)
        for text in np.unique(grams.rows[hits]):
            first, last = grams.offsets[text], grams.offsets[text + 1]
            begin, end = _longest_run(hits[first:last])
            row = self._row(self.grams, self.gram_rows, grams.values[first + begin])
            repeated = words_of(texts[text])[begin : end + self.n - 1]
            yield self._overlap(int(text), row, repeated)
        short = np.flatnonzero(words.sizes < self.n)
        wholes = whole_texts(words)
        for text in short[_known(self.wholes, wholes[short])]:
            row = self._row(self.wholes, self.whole_rows, wholes[text])
            yield self._overlap(int(text), row, words_of(texts[text]))

    def _row(self, keys: Hashes, rows: Places, value: np.uint64) -> int:
        return int(rows[np.searchsorted(keys, value)])

    def _overlap(self, text: int, row: int, repeated: list[str]) -> Overlap:
        shown = " ".join(repeated[:SHOWN_WORDS]) + (" …" if len(repeated) > SHOWN_WORDS else "")
        found = f"{self.name} row {row}, {len(repeated)} words: {shown}"
        return Overlap(
            text, found, f"fewer than {self.n} words in a row of an evaluation set, and no whole text of one"
        )


def read_set(config: EvaluationSetConfig) -> EvaluationSet:
    """An evaluation set from its files. Rows count from 1 over all of them.

    Raises `InputError` for a file that can't be read, a row that holds no text, and a set without rows.
    """
    grams, gram_rows, wholes, whole_rows = [], [], [], []
    first = 1
    for texts in _batches(_texts(config)):
        words = hashed_words(texts)
        found = ngrams(words, config.n)
        grams.append(found.values)
        gram_rows.append(found.rows + first)
        short = np.flatnonzero(words.sizes < config.n)
        wholes.append(whole_texts(words)[short])
        whole_rows.append(short + first)
        first += len(texts)
    if first == 1:
        raise InputError(f"{config.path}: the evaluation set {config.name!r} has no row; correct its path")
    return EvaluationSet(config.name, config.n, *_first_rows(grams, gram_rows), *_first_rows(wholes, whole_rows))


def check_sets(configs: Iterable[EvaluationSetConfig]) -> None:
    """Looks at every set's files without reading them whole. Raises one `InputError` that lists what is wrong."""
    raise_together(partial(_check_set, config) for config in configs)


def set_content(config: EvaluationSetConfig) -> list[str]:
    """The digests of a set's files: part of the stage's fingerprint."""
    return file_digests(config.path, config.format)


def _check_set(config: EvaluationSetConfig) -> None:
    for file in source_files(config.path, config.format):
        check_columns(file, [config.field])


def _texts(config: EvaluationSetConfig) -> Iterator[str]:
    for file in source_files(config.path, config.format):
        for row in read_file(file, [config.field]):
            if isinstance(row, Rejection):
                raise InputError(f"evaluation set {config.name!r}: {row}; correct the row")
            yield _text(row, config)


def _text(row: Row, config: EvaluationSetConfig) -> str:
    try:
        value = present(row, config.field)
        if isinstance(value, list):
            turns = checked_turns(value, config.field)
            return chat_text(
                [{"role": turn["role"], "content": normal_text(turn.get("content"), config.field)} for turn in turns]
            )
        return normal_text(value, config.field)
    except UnusableField as wrong:
        raise InputError(f"evaluation set {config.name!r}: {wrong.at(row)}; correct the row or `field`") from None


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(texts, TEXTS_AT_A_TIME)):
        yield batch


def _first_rows(hashes: list[Hashes], rows: list[Places]) -> tuple[Hashes, Places]:
    keys, first = np.unique(np.concatenate(hashes), return_index=True)
    return keys, np.concatenate(rows)[first]


def _known(keys: Hashes, values: Hashes) -> NDArray[np.bool_]:
    """For each value whether it is among the sorted keys."""
    if not len(keys):
        return np.zeros(len(values), bool)
    return keys[np.minimum(np.searchsorted(keys, values), len(keys) - 1)] == values


def _longest_run(hits: NDArray[np.bool_]) -> tuple[int, int]:
    """Where the longest run of True begins and ends, the first of several."""
    padded = np.concatenate([[False], hits, [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2)
    longest = int(np.argmax(edges[:, 1] - edges[:, 0]))
    return int(edges[longest, 0]), int(edges[longest, 1])
