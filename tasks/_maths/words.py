"""Texts as arrays of hashed words: what shingles, n-grams and hashed vectors are made of.

A word is what `\\w+` finds in the lower-cased text, as Python's `re` sees it; a text without any is split at blanks.
Hashes are 64 bits, the same on every machine and in every version, so two words that differ share one with a
probability of 5e-20.
"""

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"\w+")
CODE_POINTS = 0x110000
BLOCK_CHARACTERS = 1 << 20
Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length in one array: row i is `values[offsets[i]:offsets[i + 1]]`."""

    values: Hashes
    offsets: Places

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Places:
        """Values per row, (rows,)."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> Places:
        """The row of each value, (values,)."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def take(self, rows: Places) -> "Ragged":
        """Some of the rows, in the given order."""
        sizes = self.sizes[rows]
        return Ragged(self.values[spans(self.offsets[rows], sizes)], offsets_of(sizes))


def spans(starts: Places, sizes: Places) -> Places:
    """The numbers `start, start + 1, ..., start + size - 1` of every row, one row after the other."""
    before = np.cumsum(sizes) - sizes
    return np.arange(int(sizes.sum())) + np.repeat(starts - before, sizes)


def offsets_of(sizes: Places) -> Places:
    """Where rows of these sizes begin, and where the last one ends: (rows + 1,)."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def mixed(values: Hashes) -> Hashes:
    """Every bit of each value spread over all 64: the finalizer of SplitMix64 (Steele et al. 2014)."""
    out = values + np.uint64(0x9E3779B97F4A7C15)
    out ^= out >> np.uint64(30)
    out *= np.uint64(0xBF58476D1CE4E5B9)
    out ^= out >> np.uint64(27)
    out *= np.uint64(0x94D049BB133111EB)
    out ^= out >> np.uint64(31)
    return out


def multipliers(count: int) -> Hashes:
    """An odd number for each of `count` places: what makes a sum of hashes know their order."""
    return mixed(np.arange(count, dtype=np.uint64)) | np.uint64(1)


def words_of(text: str) -> list[str]:
    """A text's words, as strings."""
    return WORD.findall(text.lower()) or text.split()


def hashed_words(texts: Sequence[str]) -> Ragged:
    """The hash of every word of every text, in the order of the text: (words of all texts,)."""
    if not texts:
        return Ragged(np.empty(0, np.uint64), np.zeros(1, np.int64))
    blocks = [_hash_block(block) for block in _blocks([text.lower() for text in texts])]
    sizes = np.concatenate([block.sizes for block in blocks])
    return Ragged(np.concatenate([block.values for block in blocks]), offsets_of(sizes))


def ngrams(words: Ragged, n: int) -> Ragged:
    """The hash of every run of `n` words within a text; a shorter text has none."""
    count = max(len(words.values) - n + 1, 0)
    total = np.zeros(count, np.uint64)
    for place, factor in enumerate(multipliers(n)):
        total += words.values[place : place + count] * factor
    sizes = np.maximum(words.sizes - n + 1, 0)
    return Ragged(mixed(total)[spans(words.offsets[:-1], sizes)], offsets_of(sizes))


def whole_texts(words: Ragged) -> Hashes:
    """One hash for all words of a text in their order, (texts,)."""
    sizes = words.sizes
    factors = multipliers(int(sizes.max(initial=0)))
    placed = words.values * factors[spans(np.zeros_like(sizes), sizes)]
    return mixed(row_sums(placed, words.offsets) + sizes.astype(np.uint64))


def row_sums(values: Hashes, offsets: Places) -> Hashes:
    """The sum of each row's values modulo 2^64, 0 for an empty row: (rows,)."""
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])
    return running[offsets[1:]] - running[offsets[:-1]]


def _blocks(texts: list[str]) -> Iterator[list[str]]:
    """Texts in runs of about a million characters, so that what is made of them stays small."""
    ends = np.cumsum([len(text) for text in texts])
    for _, group in itertools.groupby(zip(texts, ends // BLOCK_CHARACTERS, strict=True), key=lambda pair: pair[1]):
        yield [text for text, _ in group]


def _hash_block(lowered: list[str]) -> Ragged:
    codes = np.frombuffer("".join(lowered).encode("utf-32-le", "surrogatepass"), np.uint32)
    bounds = offsets_of(np.array([len(text) for text in lowered]))
    in_word = _tables().word[codes]
    starts, stops = _runs(in_word, bounds)
    offsets = np.searchsorted(starts, bounds)
    wordless = np.diff(offsets) == 0
    if wordless.any():
        blanks_part = np.repeat(wordless, np.diff(bounds))
        in_word[blanks_part] = ~_tables().blank[codes[blanks_part]]
        starts, stops = _runs(in_word, bounds)
        offsets = np.searchsorted(starts, bounds)
    sizes = stops - starts
    factors = multipliers(int(sizes.max(initial=0)))
    placed = _tables().hashes[codes[in_word]] * factors[spans(np.zeros_like(sizes), sizes)]
    values = mixed(row_sums(placed, offsets_of(sizes)) + sizes.astype(np.uint64))
    return Ragged(values, offsets)


def _runs(inside: NDArray[np.bool_], bounds: Places) -> tuple[Places, Places]:
    """Where runs of True begin and end; none goes over a bound."""
    first, last = inside.copy(), inside.copy()
    first[1:] &= ~inside[:-1]
    last[:-1] &= ~inside[1:]
    inner = bounds[(bounds > 0) & (bounds < len(inside))]
    first[inner] = inside[inner]
    last[inner - 1] = inside[inner - 1]
    return np.flatnonzero(first), np.flatnonzero(last) + 1


@dataclass(frozen=True)
class _Tables:
    """By code point: whether it belongs to a word, whether it is blank, and its hash."""

    word: NDArray[np.bool_]
    blank: NDArray[np.bool_]
    hashes: Hashes


@functools.cache
def _tables() -> _Tables:
    characters = [chr(code) for code in range(CODE_POINTS)]
    word = np.array([character.isalnum() for character in characters])
    word[ord("_")] = True
    blank = np.array([character.isspace() for character in characters])
    return _Tables(word, blank, mixed(np.arange(CODE_POINTS, dtype=np.uint64)))
