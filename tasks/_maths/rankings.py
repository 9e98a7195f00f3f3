"""From a ranking to pairs: which rows of one group are compared. Pure, over groups of any size."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

Pairs = Int[np.ndarray, " pairs"]
Which = Literal["all", "adjacent", "best_worst"]


class RankedPairs(NamedTuple):
    """Rows of one group, the one with the higher score first; `margin` is the difference, 0 or more.

    Of two rows with equal scores the earlier one is called better.
    """

    better: Pairs
    worse: Pairs
    margin: Float[np.ndarray, " pairs"]


def ranked_pairs(
    groups: Int[np.ndarray, " rows"], scores: Float[np.ndarray, " rows"], which: Which = "all"
) -> RankedPairs:
    """The pairs of each group's ranking.

    all: K (K - 1) / 2 of a group of K (InstructGPT, arXiv 2203.02155, section 3.5), so 4 -> 6, 8 -> 28, 9 -> 36;
    adjacent: each with the next one below, K - 1; best_worst: the first with the last. A group of one row has none.
    """
    order = np.lexsort((np.arange(len(groups)), -np.asarray(scores, dtype=np.float64), groups))
    ordered = np.asarray(groups)[order]
    if which == "best_worst":
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(order) else order
        ends = np.append(starts[1:], len(order)) - 1
        several = ends > starts
        return _ranked(order[starts[several]], order[ends[several]], scores)
    better, worse = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    lag = 1
    while lag < len(order) and (lag == 1 or which == "all"):
        together = np.flatnonzero(ordered[lag:] == ordered[:-lag])
        if not len(together):
            break
        better.append(order[together])
        worse.append(order[together + lag])
        lag += 1
    return _ranked(np.concatenate(better), np.concatenate(worse), scores)


def _ranked(better: Pairs, worse: Pairs, scores: Float[np.ndarray, " rows"]) -> RankedPairs:
    return RankedPairs(better, worse, np.asarray(scores, dtype=np.float64)[better] - scores[worse])
