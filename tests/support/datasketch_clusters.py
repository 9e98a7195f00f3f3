"""Near duplicates as datasketch finds them, an index in memory and a text at a time: the peer and the oracle."""

import re
from itertools import combinations

from datasketch import MinHash, MinHashLSH

WORDS = re.compile(r"\w+")
Shingles = frozenset[tuple[str, ...]]


def shingles(text: str) -> Shingles:
    """The word 3-grams of a text, lower case; a shorter text is one shingle."""
    words = WORDS.findall(text.lower()) or text.split()
    if len(words) < 3:
        return frozenset([tuple(words)])
    return frozenset(zip(words, words[1:], words[2:], strict=False))


def jaccard(left: Shingles, right: Shingles) -> float:
    """Shared shingles over all shingles of the two."""
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def brute_force_clusters(texts: list[str], threshold: float) -> list[int]:
    """For each text the lowest index of its cluster, from every pair."""
    documents = [shingles(text) for text in texts]
    parents = list(range(len(texts)))
    for left, right in combinations(range(len(texts)), 2):
        if jaccard(documents[left], documents[right]) >= threshold:
            _link(parents, left, right)
    return [_root(parents, index) for index in range(len(texts))]


def datasketch_clusters(texts: list[str], threshold: float) -> list[int]:
    """The same from the candidates of MinHash and bands, with the weights that ours has."""
    documents = [shingles(text) for text in texts]
    parents = list(range(len(texts)))
    index = MinHashLSH(threshold=threshold, num_perm=128, weights=(0.1, 0.9))
    for number, document in enumerate(documents):
        sketch = MinHash(num_perm=128, seed=1)
        sketch.update_batch([" ".join(shingle).encode() for shingle in document])
        for earlier in index.query(sketch):
            if _root(parents, earlier) != _root(parents, number) and jaccard(documents[earlier], document) >= threshold:
                _link(parents, earlier, number)
        index.insert(number, sketch, check_duplication=False)
    return [_root(parents, number) for number in range(len(texts))]


def _link(parents: list[int], left: int, right: int) -> None:
    one, other = _root(parents, left), _root(parents, right)
    parents[max(one, other)] = min(one, other)


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index
