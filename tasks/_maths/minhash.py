"""MinHash: sets of word shingles, their signatures (Broder 1997), and the bands that make candidates of equal parts.

Bands as in Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4.
"""

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks._maths.words import Ragged, mixed, ngrams, offsets_of, whole_texts

SHINGLE_WORDS = 3
PERMUTATIONS = 128
# Candidates are checked exactly, so a missed pair costs more than a wrong candidate.
FALSE_POSITIVE_WEIGHT, FALSE_NEGATIVE_WEIGHT = 0.1, 0.9
# A shingle keeps 48 bits of its hash, so that one sort of 64-bit numbers orders shingles within numbered texts: of two
# texts of a hundred shingles, two that differ are taken as one with a probability of 4e-11.
HASH_BITS = np.uint64(48)
LOW_BITS = np.uint64((1 << 48) - 1)
NUMBERED = 1 << 16
SKETCH_BLOCK = 1024
THREADS = 2


class Bands(NamedTuple):
    """Two texts are candidates when all `rows` minima of one of `number` bands agree."""

    number: int
    rows: int


@functools.cache
def best_bands(threshold: float) -> Bands:
    """The bands with the least weighted error at a similarity threshold.

    The error is the area of false positives below the threshold and of false negatives above it, where a pair of
    similarity s is a candidate with probability 1 - (1 - s^rows)^bands.
    """
    grid = np.linspace(0, 1, 2001)
    below = grid < threshold
    best, least = Bands(1, 1), np.inf
    for count in range(1, PERMUTATIONS + 1):
        for rows in range(1, PERMUTATIONS // count + 1):
            found = 1 - (1 - grid**rows) ** count
            error = FALSE_POSITIVE_WEIGHT * found[below].sum() + FALSE_NEGATIVE_WEIGHT * (1 - found[~below]).sum()
            if error < least:
                best, least = Bands(count, rows), error
    return best


def shingle_sets(words: Ragged) -> Ragged:
    """The word 3-grams of each text as a sorted set of 48-bit hashes; a shorter text is one shingle."""
    grams = ngrams(words, SHINGLE_WORDS)
    sizes = grams.sizes
    short = sizes == 0
    values = np.empty(int(sizes.sum()) + int(short.sum()), np.uint64)
    sizes = np.where(short, 1, sizes)
    offsets = offsets_of(sizes)
    is_short = np.repeat(short, sizes)
    values[~is_short] = grams.values
    values[is_short] = whole_texts(words)[short]
    return _sorted_sets(Ragged(values & LOW_BITS, offsets))


def _sorted_sets(shingles: Ragged) -> Ragged:
    """Each row sorted, every value once."""
    values, sizes = [], []
    for first in range(0, len(shingles), NUMBERED):
        last = min(first + NUMBERED, len(shingles))
        bounds = shingles.offsets[first : last + 1]
        rows = np.repeat(np.arange(last - first, dtype=np.uint64), np.diff(bounds))
        keys = (rows << HASH_BITS) | shingles.values[bounds[0] : bounds[-1]]
        keys.sort()
        keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
        sizes.append(np.bincount((keys >> HASH_BITS).astype(np.int64), minlength=last - first))
        values.append(keys & LOW_BITS)
    return Ragged(np.concatenate(values), offsets_of(np.concatenate(sizes)))


def minima(sets: Ragged) -> NDArray[np.uint32]:
    """The MinHash signature of each set, (texts, 128): the minimum of each permutation over its shingles.

    A permutation of 32-bit numbers is x -> a x + b modulo 2^32 with a odd.
    """
    factors = mixed(np.arange(1, 2 * PERMUTATIONS + 1, dtype=np.uint64)).astype(np.uint32)
    scales, shifts = factors[:PERMUTATIONS] | np.uint32(1), factors[PERMUTATIONS:]
    values = (mixed(sets.values) >> np.uint64(32)).astype(np.uint32)
    out = np.empty((len(sets), PERMUTATIONS), np.uint32)

    def fill(first: int) -> None:
        last = min(first + SKETCH_BLOCK, len(sets))
        bounds = sets.offsets[first : last + 1]
        part, starts = values[bounds[0] : bounds[-1]], bounds[:-1] - bounds[0]
        permuted = np.empty_like(part)
        for place in range(PERMUTATIONS):
            np.multiply(part, scales[place], out=permuted)
            np.add(permuted, shifts[place], out=permuted)
            out[first:last, place] = np.minimum.reduceat(permuted, starts)

    with ThreadPoolExecutor(THREADS) as pool:  # numpy lets go of the interpreter's lock
        list(pool.map(fill, range(0, len(sets), SKETCH_BLOCK)))
    return out


def band_hashes(signatures: NDArray[np.uint32], bands: Bands) -> NDArray[np.uint32]:
    """A 32-bit hash of each band of each signature, (bands, texts)."""
    out = np.empty((bands.number, len(signatures)), np.uint32)
    for band in range(bands.number):
        total = np.zeros(len(signatures), np.uint64)
        for place in range(band * bands.rows, (band + 1) * bands.rows):
            total = mixed(total ^ signatures[:, place])
        out[band] = total >> np.uint64(32)
    return out
