"""How alike sequences of tokens are: shingles, MinHash signatures, and what they say of repetition and duplicates.

Vectorised over rows of different lengths: a flat array of token ids and the length of each row. Hashes are ours and
don't change between versions of a library, so that stored signatures stay comparable.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt64

SHINGLE_TOKENS = 5
SLOTS = 128
CHUNK_PAIRS = 16_384
# The chance that two unlike slots of one byte agree.
ACCIDENT = 1 / 256
_EMPTY = np.uint32(0xFFFFFFFF)
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Hashes = UInt64[np.ndarray, " shingles"]
Signatures = UInt8[np.ndarray, "rows slots"]
Rows = Int[np.ndarray, " rows"]
Pairs = Int[np.ndarray, " pairs"]


class Shingles(NamedTuple):
    """Hashed n-grams, and the row that each is of."""

    hashes: Hashes
    rows: Int[np.ndarray, " shingles"]


def shingle(tokens: Int[np.ndarray, " tokens"], lengths: Rows, n: int = SHINGLE_TOKENS) -> Shingles:
    """Every n-gram of tokens of every row. A row of fewer than n tokens is one shingle, an empty row none."""
    lengths = np.asarray(lengths, dtype=np.int64)
    spread = _mixed(np.asarray(tokens).astype(np.uint64) + np.uint64(1))
    padded = np.concatenate([spread, np.zeros(n - 1, dtype=np.uint64)])
    rolled = np.zeros(len(spread), dtype=np.uint64)
    for offset in range(n):
        rolled *= _FACTOR
        rolled += padded[offset : offset + len(spread)]
    rows = np.repeat(np.arange(len(lengths)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(spread))
    whole = left >= n
    short, padding = _short_rows(padded, lengths, n)
    return Shingles(_mixed(np.concatenate([rolled[whole], padding])), np.concatenate([rows[whole], short]))


def _short_rows(padded: Hashes, lengths: Rows, n: int) -> tuple[Rows, Hashes]:
    """The one shingle of each row of fewer than n tokens, as if zeros followed."""
    short = np.flatnonzero((lengths > 0) & (lengths < n))
    first = (np.cumsum(lengths) - lengths)[short]
    rolled = np.zeros(len(short), dtype=np.uint64)
    for offset in range(n):
        rolled *= _FACTOR
        rolled += np.where(offset < lengths[short], padded[first + offset], np.uint64(0))
    return short, rolled


def repeated_shares(shingles: Shingles, rows: int) -> Float[np.ndarray, " rows"]:
    """1 - distinct shingles / all shingles of each row (Li 2016, arXiv 1510.03055); 0 for a row without one.

    Raises `ValueError` for more than 2^20 rows: a row's number shares 64 bits with its hash.
    """
    if rows > 1 << 20:
        raise ValueError(f"{rows} rows at once: expected at most {1 << 20}")
    total = np.bincount(shingles.rows, minlength=rows)
    keys = np.sort((shingles.rows.astype(np.uint64) << np.uint64(44)) | (shingles.hashes >> np.uint64(20)))
    first = np.ones(len(keys), dtype=bool)
    first[1:] = keys[1:] != keys[:-1]
    distinct = np.bincount((keys[first] >> np.uint64(44)).astype(np.int64), minlength=rows)
    return 1.0 - distinct / np.maximum(total, 1) - (total == 0)


def signatures(shingles: Shingles, rows: int) -> Signatures:
    """MinHash of each row's set of shingles, 128 slots of one byte.

    One hash function, whose upper bits choose the slot (one permutation hashing, Li et al. 2012); an empty slot
    takes its right neighbour's (Shrivastava and Li 2014); a byte of each minimum is kept (b-bit MinHash, Li and
    Koenig 2010). Equal sets have equal signatures.
    """
    flat = np.full(rows * SLOTS, _EMPTY, dtype=np.uint32)
    slots = shingles.rows * SLOTS + (shingles.hashes >> np.uint64(57)).astype(np.int64)
    values = np.minimum(shingles.hashes & np.uint64(_EMPTY), np.uint64(_EMPTY - 1)).astype(np.uint32)
    np.minimum.at(flat, slots, values)
    least = flat.reshape(rows, SLOTS)
    places = np.arange(SLOTS, dtype=np.int16)
    filled = np.where(least != _EMPTY, places, np.int16(4 * SLOTS))
    ahead = np.concatenate([filled, filled + np.int16(SLOTS)], axis=1)[:, ::-1]
    nearest = np.minimum.accumulate(ahead, axis=1)[:, ::-1][:, :SLOTS]
    borrowed = np.take_along_axis(least, nearest % SLOTS, axis=1).astype(np.uint64)
    far = (nearest - places).astype(np.uint64)
    return (_mixed(borrowed + (far << np.uint64(32))) >> np.uint64(56)).astype(np.uint8)


def similarity(left: Signatures, right: Signatures) -> Float[np.ndarray, " pairs"]:
    """Estimated Jaccard similarity of pairs of rows, in [0, 1]; the standard error is at most 0.045 at full slots."""
    agreed = (left == right).mean(axis=1)
    return np.clip((agreed - ACCIDENT) / (1 - ACCIDENT), 0.0, 1.0)


class Alike(NamedTuple):
    """Pairs (earlier row, later row) and how similar they are."""

    left: Pairs
    right: Pairs
    similarity: Float[np.ndarray, " pairs"]


def alike_within(marks: Signatures, groups: Rows, threshold: float, chosen: Rows | None = None) -> Alike:
    """All pairs of rows of one group whose similarity is at least the threshold.

    With `chosen` the rows are those of the signatures, in that order, and `groups` is as long: nothing is copied.
    """
    order = np.argsort(groups, kind="stable")
    ordered = np.asarray(groups)[order]
    found, lag = [], 1
    while lag < len(order):
        together = np.flatnonzero(ordered[lag:] == ordered[:-lag])
        if not len(together):
            break
        found.append(_confirmed(marks, order[together], order[together + lag], threshold, chosen))
        lag += 1
    return _joined(found)


def alike_across(marks: Signatures, threshold: float) -> Alike:
    """Pairs of rows whose similarity is at least the threshold, enough of them to connect what is alike.

    Candidates share a band of slots (locality-sensitive hashing); in a bucket each row is compared with the first
    and with the one before it, so that a bucket of a million equal rows costs a million comparisons. Bands are of 8
    slots from a threshold of 0.85 on, else of 4: a pair at the threshold is missed with a probability below 0.02 from
    0.6 on.
    """
    found = []
    for keys in np.ascontiguousarray(marks).view(np.uint64 if threshold >= 0.85 else np.uint32).T:
        order = np.argsort(keys, kind="stable")
        again = np.zeros(len(order), dtype=bool)
        again[1:] = keys[order[1:]] == keys[order[:-1]]
        first = np.maximum.accumulate(np.where(again, 0, np.arange(len(order))))
        later = np.flatnonzero(again)
        found.append(_confirmed(marks, order[first[later]], order[later], threshold))
        third = later[first[later] < later - 1]
        found.append(_confirmed(marks, order[third - 1], order[third], threshold))
    return _joined(found)


def clusters(rows: int, alike: Alike) -> Rows:
    """For each row the lowest row of its cluster: the connected components of the pairs."""
    labels = np.arange(rows)
    while True:
        low = np.minimum(labels[alike.left], labels[alike.right])
        lower = labels.copy()
        np.minimum.at(lower, alike.left, low)
        np.minimum.at(lower, alike.right, low)
        lower = lower[lower]
        if np.array_equal(lower, labels):
            return labels
        labels = lower


def closest(rows: int, alike: Alike) -> Float[np.ndarray, " rows"]:
    """The similarity of each row to the row that is most like it among its pairs; 0 without one."""
    most = np.zeros(rows)
    np.maximum.at(most, alike.left, alike.similarity)
    np.maximum.at(most, alike.right, alike.similarity)
    return most


def _confirmed(marks: Signatures, left: Pairs, right: Pairs, threshold: float, chosen: Rows | None = None) -> Alike:
    """Of candidate pairs those that are similar enough, compared in pieces that fit the cache."""
    measured = np.empty(len(left))
    for start in range(0, len(left), CHUNK_PAIRS):
        part = slice(start, start + CHUNK_PAIRS)
        first, second = (side[part] if chosen is None else chosen[side[part]] for side in (left, right))
        measured[part] = similarity(marks[first], marks[second])
    enough: Bool[np.ndarray, " pairs"] = measured >= threshold
    return Alike(left[enough], right[enough], measured[enough])


def _joined(parts: list[Alike]) -> Alike:
    if not parts:
        return Alike(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0))
    return Alike(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _mixed(values: Hashes) -> Hashes:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the value."""
    mixed = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
