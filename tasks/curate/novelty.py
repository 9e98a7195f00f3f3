"""How like a text is to those before it: ROUGE-L (Lin 2004, section 3), exact, without comparing all with all."""

import re
from array import array
from collections import Counter
from collections.abc import Sequence

import numpy as np

WORDS = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """The words of a text, lower case, without punctuation."""
    return WORDS.findall(text.lower())


def common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """The length of the longest common subsequence of two lists of words.

    Bit-parallel: one addition of whole numbers with a bit per word of `left`, for each word of `right` (Hyyrö 2004,
    "Bit-parallel LCS-length computation revisited", figure 2).
    """
    places: dict[str, int] = {}
    for index, word in enumerate(left):
        places[word] = places.get(word, 0) | 1 << index
    everywhere = (1 << len(left)) - 1
    row = everywhere
    for word in right:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & everywhere
    return len(left) - row.bit_count()


def rouge_l(left: Sequence[str], right: Sequence[str]) -> float:
    """ROUGE-L's F measure in [0, 1]: 2 LCS / (len(left) + len(right)), the harmonic mean of precision and recall."""
    total = len(left) + len(right)
    return 2 * common_subsequence(left, right) / total if total else 1.0


class Novelty:
    """The texts so far. An inverted index bounds each similarity from above, and only what may be near is compared."""

    def __init__(self) -> None:
        self._texts: list[list[str]] = []
        self._lengths = array("I")
        self._places: dict[tuple[str, int], array[int]] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        """One more text that others must differ from."""
        words, number = words_of(text), len(self._texts)
        for key in _occurrences(words):
            self._places.setdefault(key, array("I")).append(number)
        self._texts.append(words)
        self._lengths.append(len(words))

    def nearest(self, text: str, floor: float) -> tuple[int, float] | None:
        """The most similar text's number and its ROUGE-L F, where one reaches `floor` (above 0); or None."""
        words = words_of(text)
        found = [self._places[key] for key in _occurrences(words) if key in self._places]
        if not found:
            return None
        hits = np.concatenate([np.frombuffer(places, dtype=np.uint32) for places in found])
        shared = np.bincount(hits, minlength=len(self._texts))
        # A common subsequence has no more words than the two texts share, repeats counted.
        bounds = 2 * shared / (np.frombuffer(self._lengths, dtype=np.uint32) + len(words))
        best: tuple[int, float] | None = None
        for number in np.argsort(-bounds, kind="stable"):
            least = floor if best is None else best[1]
            if bounds[number] < least:
                break
            similarity = rouge_l(self._texts[number], words)
            closer = best is None or similarity > best[1] or (similarity == best[1] and number < best[0])
            if similarity >= floor and closer:
                best = int(number), similarity
        return best


def _occurrences(words: Sequence[str]) -> list[tuple[str, int]]:
    """Each word with the number of its occurrence: the sets of two texts share what their bags of words share."""
    seen: Counter[str] = Counter()
    keys = []
    for word in words:
        keys.append((word, seen[word]))
        seen[word] += 1
    return keys
