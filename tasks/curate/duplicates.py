"""Exact duplicates are set aside; near duplicates share a cluster, so that a split never parts them."""

import re
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from datasketch import MinHash, MinHashLSH

from tasks._sources.rows import Rejection

SHINGLE_WORDS = 3
PERMUTATIONS = 128
# Candidates are checked exactly, so a missed pair costs more than a wrong candidate.
FALSE_POSITIVE_WEIGHT, FALSE_NEGATIVE_WEIGHT = 0.1, 0.9
WORDS = re.compile(r"\w+")

Shingles = frozenset[tuple[str, ...]]


def set_aside_exact(prompts: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Rejection]]:
    """Keeps the first prompt of each `prompt_id`; the others become rejections that name the first."""
    first: dict[str, str] = {}
    kept, rejected = [], []
    for prompt in prompts:
        original = first.get(prompt["prompt_id"])
        if original is None:
            first[prompt["prompt_id"]] = prompt["source"]
            kept.append(prompt)
            continue
        path, _, row = prompt["source"].rpartition(":")
        expected = "messages and verifier that no earlier row has"
        rejected.append(Rejection(path, int(row), "exact_duplicate", found=f"same as {original}", expected=expected))
    return kept, rejected


def shingles(messages: Sequence[dict[str, str]]) -> Shingles:
    """The word 3-grams of a chat's turns without its system message, lower case; a shorter text is one shingle."""
    text = " ".join(message["content"] for message in messages if message["role"] != "system")
    words = WORDS.findall(text.lower()) or text.split()
    if len(words) < SHINGLE_WORDS:
        return frozenset([tuple(words)])
    return frozenset(zip(*(words[offset:] for offset in range(SHINGLE_WORDS)), strict=False))


def jaccard(left: Shingles, right: Shingles) -> float:
    """Shared shingles over all shingles of the two, in [0, 1]."""
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def cluster_near_duplicates(documents: Sequence[Shingles], threshold: float) -> list[int]:
    """For each document the lowest index of its cluster.

    Clusters are the connected components of "Jaccard similarity >= threshold", so they don't depend on the
    order. Candidate pairs come from MinHash with locality-sensitive hashing (Broder 1997) and are checked exactly.
    """
    parents = list(range(len(documents)))
    first: dict[Shingles, int] = {}
    distinct: list[int] = []
    for index, document in enumerate(documents):
        original = first.setdefault(document, index)
        if original == index:
            distinct.append(index)
        else:
            parents[index] = original
    for left, right in _candidates([documents[index] for index in distinct], threshold):
        one, other = _root(parents, distinct[left]), _root(parents, distinct[right])
        if one != other and jaccard(documents[distinct[left]], documents[distinct[right]]) >= threshold:
            parents[max(one, other)] = min(one, other)
    return [_root(parents, index) for index in range(len(documents))]


def cluster_ids(prompt_ids: Sequence[str], clusters: Sequence[int]) -> list[str]:
    """A name per prompt's cluster: the smallest `prompt_id` in it."""
    smallest: dict[Hashable, str] = {}
    for prompt_id, cluster in zip(prompt_ids, clusters, strict=True):
        smallest[cluster] = min(prompt_id, smallest.get(cluster, prompt_id))
    return [smallest[cluster] for cluster in clusters]


def _candidates(documents: Sequence[Shingles], threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs (earlier, later) that may be similar."""
    if threshold == 1:
        return
    weights = (FALSE_POSITIVE_WEIGHT, FALSE_NEGATIVE_WEIGHT)
    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=weights)
    for number, document in enumerate(documents):
        sketch = MinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update_batch([" ".join(shingle).encode() for shingle in document])
        yield from ((earlier, number) for earlier in index.query(sketch))
        index.insert(number, sketch, check_duplication=False)


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index
