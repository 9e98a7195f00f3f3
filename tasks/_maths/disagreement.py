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


def gaps(groups: Groups, rewards: Rows, humans: Rows) -> Rows:
    """z(reward) - z(human score) within each group: above 0 where the reward model likes a row more than people do.

    Pairs tell a reward model nothing of the offset between two prompts, and people's scores may have another scale in
    each: both are taken from their group's mean and in standard deviations of that. NaN where one of the two is
    unknown, and where no other row of the group is ordered the other way round by people: a difference that any rising
    map of the rewards would close asks for a calibration, not for a label.
    """
    known = np.flatnonzero(np.isfinite(rewards) & np.isfinite(humans))
    out = np.full(len(rewards), np.nan)
    if not len(known):
        return out
    centred = [_centred(groups[known], values[known]) for values in (rewards, humans)]
    if min(values.std() for values in centred) == 0:
        return out
    against = _contradicted(groups[known], rewards[known], humans[known])
    gap = centred[0] / centred[0].std() - centred[1] / centred[1].std()
    out[known[against]] = gap[against]
    return out


def disagreements(groups: Groups, rewards: Rows, humans: Rows, *, quantile: float = 0.8) -> Candidates:
    """The pairs that people should look at: of the rows with a gap (`gaps`), each beside a neighbour.

    `groups` numbers the prompts; `rewards` (NaN: none) are the reward model's, `humans` people's scores (NaN: unknown).
    "High" is at or above the `quantile` of the rows that have both, each taken from its group's mean, "low" at or below
    1 - `quantile`.

    - underrated: human score high, reward low. Shown beside the answer that the reward model ranks next above it.
    - overrated: reward high, human score low. Beside the one ranked next below it.
    - residual: any other row with a gap, beside its neighbour on that side.

    At the end of a ranking the neighbour on the other side takes its place; a group of one row has no pair.
    """
    ranking = _Ranking(groups, rewards)
    gap = gaps(groups, rewards, humans)
    both = np.isfinite(rewards) & np.isfinite(humans)
    reward, human = (np.full(len(groups), np.nan) for _ in range(2))
    for into, values in ((reward, rewards), (human, humans)):
        into[both] = _centred(groups[both], values[both])
    over = (gap > 0) & _high(reward, quantile) & _high(-human, quantile)
    under = (gap < 0) & _high(-reward, quantile) & _high(human, quantile)
    parts: list[tuple[int, Pairs, Pairs, Rows]] = []
    for reason, rows in ((UNDERRATED, under), (OVERRATED, over), (RESIDUAL, np.isfinite(gap) & ~over & ~under)):
        chosen = np.flatnonzero(rows)
        chosen, partners = ranking.beside(chosen, np.where(gap[chosen] > 0, 1, -1))
        parts.append((REASONS.index(reason), chosen, partners, np.abs(gap[chosen])))
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


def _centred(groups: Groups, values: Rows) -> Rows:
    """Less the mean of each one's group."""
    _, index = np.unique(groups, return_inverse=True)
    return values - (np.bincount(index, values) / np.maximum(np.bincount(index), 1))[index]


def _contradicted(groups: Groups, rewards: Rows, humans: Rows) -> Bool[np.ndarray, " rows"]:
    """The rows that people order the other way round than the rewards do, beside some row of their group."""
    out = np.zeros(len(groups), dtype=bool)
    order = np.argsort(groups, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        reward, human = (values[rows][:, None] - values[rows] for values in (rewards, humans))
        out[rows] = (reward * human < 0).any(axis=1)
    return out


def _high(values: Rows, quantile: float) -> Bool[np.ndarray, " rows"]:
    known = values[np.isfinite(values)]
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    with np.errstate(invalid="ignore"):
        return np.asarray(values >= np.quantile(known, quantile))
