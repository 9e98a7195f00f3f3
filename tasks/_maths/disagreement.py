"""Where a reward model and people disagree: which pairs are worth another label. Pure.

The targets of methods.md, 3.4: the largest residuals, high reward with a low human score, and the reverse.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

Rows = Float[np.ndarray, " rows"]
Groups = Int[np.ndarray, " rows"]
Pairs = Int[np.ndarray, " pairs"]
UNDERRATED, OVERRATED, RESIDUAL = "underrated", "overrated", "residual"
REASONS = (UNDERRATED, OVERRATED, RESIDUAL)


class Candidates(NamedTuple):
    """Pairs of rows of one group, each once: sorted by reason as in `REASONS`, then the highest priority first.

    `reason` indexes `REASONS`. The priority is |gap| in standard deviations.
    """

    first: Pairs
    second: Pairs
    reason: Pairs
    priority: Float[np.ndarray, " pairs"]


def gaps(rewards: Rows, humans: Rows) -> Rows:
    """z(reward) - z(human score): above 0 where the reward model likes a row more than people do.

    Both are standardised over the rows that have both, so no scale is shared; NaN where one is NaN, and everywhere
    where one of the two never varies.
    """
    both = np.isfinite(rewards) & np.isfinite(humans)
    out = np.full(len(rewards), np.nan)
    if both.any() and rewards[both].std() > 0 and humans[both].std() > 0:
        out[both] = _standardised(rewards[both]) - _standardised(humans[both])
    return out


def disagreements(groups: Groups, rewards: Rows, humans: Rows, *, quantile: float = 0.8) -> Candidates:
    """The pairs that people should look at.

    `groups` numbers the prompts; `rewards` (NaN: none) are the reward model's, `humans` people's scores (NaN: unknown).
    "High" is at or above the `quantile` of all rows, "low" at or below 1 - `quantile`.

    - underrated: human score high, reward low. Shown beside the answer that the reward model ranks next above it.
    - overrated: reward high, human score low. Beside the one ranked next below it.
    - residual: any other row whose |gap| is high, beside its neighbour on that side.

    At the end of a ranking the neighbour on the other side takes its place; a group of one row has no pair.
    """
    ranking = _Ranking(groups, rewards)
    gap = gaps(rewards, humans)
    size = np.abs(gap)
    over = (gap > 0) & _high(rewards, quantile) & _low(humans, quantile)
    under = (gap < 0) & _low(rewards, quantile) & _high(humans, quantile)
    parts: list[tuple[int, Pairs, Pairs, Rows]] = []
    for reason, rows in ((UNDERRATED, under), (OVERRATED, over), (RESIDUAL, _high(size, quantile) & ~over & ~under)):
        chosen = np.flatnonzero(rows)
        chosen, partners = ranking.beside(chosen, np.where(gap[chosen] > 0, 1, -1))
        parts.append((REASONS.index(reason), chosen, partners, size[chosen]))
    return _once(parts)


class _Ranking:
    """The rows with a reward, by group, the highest reward first."""

    def __init__(self, groups: Groups, rewards: Rows) -> None:
        ranked = np.flatnonzero(np.isfinite(rewards))
        self._order = ranked[np.lexsort((ranked, -rewards[ranked], groups[ranked]))]
        self._groups = groups
        self._place = np.full(len(groups), -1)
        self._place[self._order] = np.arange(len(self._order))

    def beside(self, rows: Pairs, step: Pairs) -> tuple[Pairs, Pairs]:
        """Those of the rows that have a neighbour, and that: `step` places further down, else the other way."""
        wanted, other = self._at(rows, step), self._at(rows, -step)
        partners = np.where(wanted >= 0, wanted, other)
        return rows[partners >= 0], partners[partners >= 0]

    def _at(self, rows: Pairs, step: Pairs) -> Pairs:
        """The row at that distance in the ranking of the same group, -1 where there is none."""
        if not len(self._order):
            return np.full(len(rows), -1)
        places = self._place[rows] + step
        inside = (self._place[rows] >= 0) & (places >= 0) & (places < len(self._order))
        found = self._order[np.clip(places, 0, len(self._order) - 1)]
        return np.where(inside & (self._groups[found] == self._groups[rows]), found, -1)


def _once(parts: list[tuple[int, Pairs, Pairs, Rows]]) -> Candidates:
    """Every pair under the first of its reasons, with the highest priority that it has there."""
    first, second, priority = (np.concatenate([part[at] for part in parts]) for at in (1, 2, 3))
    reason = np.concatenate([np.full(len(part[1]), part[0]) for part in parts])
    order = np.lexsort((second, first, -priority, reason))
    low, high = np.minimum(first, second)[order], np.maximum(first, second)[order]
    _, earliest = np.unique(np.stack([low, high]), axis=1, return_index=True)
    kept = order[np.sort(earliest)]
    return Candidates(first[kept], second[kept], reason[kept], priority[kept])


def _standardised(values: Rows) -> Rows:
    return (values - values.mean()) / values.std()


def _high(values: Rows, quantile: float) -> Bool[np.ndarray, " rows"]:
    known = values[np.isfinite(values)]
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    with np.errstate(invalid="ignore"):
        return np.asarray(values >= np.quantile(known, quantile))


def _low(values: Rows, quantile: float) -> Bool[np.ndarray, " rows"]:
    return _high(-values, quantile)
