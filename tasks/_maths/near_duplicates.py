"""Near duplicates among a million texts: candidates by the bands of their MinHash signatures, checked exactly.

The low byte of each minimum is a cheap second estimate, as in Li and König 2010. What is similar is decided by the
exact Jaccard similarity alone: bands can only miss a pair. In memory stay about 250 bytes of a text; its shingles lie
in a file.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tasks._maths.minhash import HASH_BITS, NUMBERED, PERMUTATIONS, band_hashes, best_bands, minima, shingle_sets
from tasks._maths.words import Hashes, Places, Ragged, mixed, offsets_of, row_sums

PAIR_BLOCK, ELEMENT_BLOCK = NUMBERED, 1 << 22
# Of a bucket with more texts than this, a text is compared with those that lie nearer than this in it.
WINDOW = 32
ESTIMATE_DEVIATIONS = 4.0
HASH_BYTES = 8
Sketches = NDArray[np.uint8]
Labels = NDArray[np.int64]


class ShingleIndex:
    """What the search keeps of each text: band hashes, the minima's low bytes, a hash of its set, its place in a file.

    That is 4 bytes a band, 128 and 24 in memory; the sets of shingles (8 bytes each) and the low bytes lie in `folder`
    until `clusters` reads them.
    """

    def __init__(self, threshold: float, folder: Path) -> None:
        self.threshold = threshold
        self._bands = best_bands(threshold)
        self._sets, self._sketches = folder / "shingles.bin", folder / "sketches.bin"
        for path in (self._sets, self._sketches):
            path.write_bytes(b"")
        self._band_hashes: list[NDArray[np.uint32]] = []
        self._set_hashes: list[Hashes] = []
        self._sizes: list[Places] = []

    def add(self, words: Ragged) -> None:
        """Takes some thousand texts more."""
        if not len(words):
            return
        sets = shingle_sets(words)
        self._sizes.append(sets.sizes)
        self._set_hashes.append(mixed(row_sums(mixed(sets.values), sets.offsets) + sets.sizes.astype(np.uint64)))
        if self.threshold == 1:
            return
        signatures = minima(sets)
        self._band_hashes.append(band_hashes(signatures, self._bands))
        with self._sets.open("ab") as file:
            sets.values.tofile(file)
        with self._sketches.open("ab") as file:
            signatures.astype(np.uint8).tofile(file)

    def clusters(self, kept: NDArray[np.bool_]) -> Labels:
        """For each text the lowest index of its cluster among the `kept`; one that isn't kept is its own.

        Clusters are the connected components of "Jaccard similarity >= threshold". Of texts with equal shingles only
        the first is compared further, so a million equal texts cost what one does. Of a bucket larger than `WINDOW`,
        neighbours alone are compared, so the work grows with the number of texts and not with its square.
        """
        if not self._set_hashes:
            return np.empty(0, np.int64)
        clusters = Clusters(first_of_equal(np.concatenate(self._set_hashes), kept))
        if self.threshold == 1:
            return clusters.labels
        distinct = np.flatnonzero(kept & (clusters.labels == np.arange(len(kept))))
        checker = _Checker(self.threshold, self._sets, self._sketches, np.concatenate(self._sizes))
        for band in range(self._bands.number):
            hashes = np.concatenate([part[band] for part in self._band_hashes])
            for left, right in _neighbours(hashes[distinct], distinct, clusters):
                similar = checker.similar(left, right)
                clusters.join(left[similar], right[similar])
        return clusters.labels


def first_of_equal(keys: Hashes, kept: NDArray[np.bool_]) -> Labels:
    """For each key the lowest kept index with the same one; an index that isn't kept stays as it is."""
    labels = np.arange(len(keys))
    members = np.flatnonzero(kept)
    order = members[np.argsort(keys[members], kind="stable")]
    if not len(order):
        return labels
    begins = np.concatenate([[True], keys[order][1:] != keys[order][:-1]])
    labels[order] = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    return labels


class Clusters:
    """Which texts belong together: the label of each is the lowest index of its cluster."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels

    def join(self, left: Places, right: Places) -> None:
        """The clusters of the two of each pair become one."""
        if not len(left):
            return
        nodes, ends = np.unique(np.stack([self.labels[left], self.labels[right]]), return_inverse=True)
        one, other = ends.reshape(2, -1)
        links = coo_array((np.ones(len(one)), (one, other)), shape=(len(nodes), len(nodes)))  # equal ones are summed
        count, components = connected_components(links, directed=False)
        lowest = np.full(count, len(self.labels))
        np.minimum.at(lowest, components, nodes)
        renamed = np.arange(len(self.labels))
        renamed[nodes] = lowest[components]
        self.labels = renamed[self.labels]


def _neighbours(hashes: NDArray[np.uint32], members: Places, clusters: Clusters) -> Iterator[tuple[Places, Places]]:
    """Pairs of members with equal hashes and different labels, by their distance among those of one hash.

    The labels are those of the moment: a pair that others linked meanwhile isn't compared any more.
    """
    keys = (hashes.astype(np.uint64) << np.uint64(32)) | np.arange(len(members), dtype=np.uint64)
    keys.sort()
    bucket = (keys >> np.uint64(32)).astype(np.uint32)
    shared = np.zeros(len(keys), bool)
    same = bucket[1:] == bucket[:-1]
    shared[1:] |= same
    shared[:-1] |= same
    bucket = bucket[shared]
    texts = members[(keys[shared] & np.uint64(0xFFFFFFFF)).astype(np.int64)]
    for distance in range(1, WINDOW):
        together = bucket[distance:] == bucket[:-distance]
        if not together.any():
            return
        left, right = texts[:-distance][together], texts[distance:][together]
        apart = clusters.labels[left] != clusters.labels[right]
        if apart.any():
            yield left[apart], right[apart]


class _Checker:
    """Decides which pairs are similar: by size, then by the minima's low bytes, then exactly."""

    def __init__(self, threshold: float, sets: Path, sketches: Path, sizes: Places) -> None:
        self._threshold, self._path = threshold, sets
        self._sizes, self._offsets = sizes, offsets_of(sizes)
        self._sketches: Sketches = np.fromfile(sketches, np.uint8).reshape(-1, PERMUTATIONS)
        agreeing = threshold + (1 - threshold) / 256
        spread = np.sqrt(PERMUTATIONS * agreeing * (1 - agreeing))
        self._least = PERMUTATIONS * agreeing - ESTIMATE_DEVIATIONS * spread

    def similar(self, left: Places, right: Places) -> NDArray[np.bool_]:
        """For each pair whether its Jaccard similarity reaches the threshold."""
        one, other = self._sizes[left], self._sizes[right]
        small, large = np.minimum(one, other), np.maximum(one, other)
        possible = np.flatnonzero(small / large >= self._threshold)
        for first in range(0, len(possible), PAIR_BLOCK):
            part = possible[first : first + PAIR_BLOCK]
            agree = (self._sketches[left[part]] == self._sketches[right[part]]).sum(axis=1)
            possible[first : first + PAIR_BLOCK] = np.where(agree >= self._least, part, -1)
        possible = possible[possible >= 0]
        out = np.zeros(len(left), bool)
        for part in _pair_blocks(possible, (small + large)[possible]):
            shared = self._shared(left[part], right[part])
            out[part] = shared / (one[part] + other[part] - shared) >= self._threshold
        return out

    def _shared(self, left: Places, right: Places) -> Places:
        """How many shingles the two of each pair have in common: a value that is there twice after sorting."""
        texts = np.stack([left, right], axis=1).reshape(-1)
        sizes = self._sizes[texts]
        pairs = np.repeat(np.arange(len(left), dtype=np.uint64), sizes[0::2] + sizes[1::2])
        keys = (pairs << HASH_BITS) | self._read(texts, sizes)
        keys.sort()
        twice = keys[1:][keys[1:] == keys[:-1]]
        return np.bincount((twice >> HASH_BITS).astype(np.int64), minlength=len(left))

    def _read(self, texts: Places, sizes: Places) -> Hashes:
        """The shingles of some texts, one after the other. Not by a memory map: its pages would count as memory."""
        shingles = np.empty(int(sizes.sum()), np.uint64)
        ends = np.cumsum(sizes) * HASH_BYTES
        begins, places = ends - sizes * HASH_BYTES, self._offsets[texts] * HASH_BYTES
        target = shingles.view(np.uint8).data
        with self._path.open("rb", buffering=0) as file:
            for place, begin, end in zip(places.tolist(), begins.tolist(), ends.tolist(), strict=True):
                if os.preadv(file.fileno(), [target[begin:end]], place) != end - begin:
                    raise OSError(f"{self._path}: ends before byte {place + end - begin}")
        return shingles


def _pair_blocks(pairs: Places, elements: Places) -> Iterator[Places]:
    """The pairs in runs of at most 65,536 that have about four million shingles together."""
    ends = np.cumsum(elements)
    first = 0
    while first < len(pairs):
        reached = ends[first - 1] if first else 0
        last = int(np.searchsorted(ends, reached + ELEMENT_BLOCK, side="right"))
        last = min(max(last, first + 1), first + PAIR_BLOCK, len(pairs))
        yield pairs[first:last]
        first = last
