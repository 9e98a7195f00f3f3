"""What the rules look at: the complete rollouts, one row each, and sums over their groups."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

Values = Float[np.ndarray, " rows"]
Flags = Bool[np.ndarray, " rows"]
Groups = Int[np.ndarray, " rows"]


class Finding(NamedTuple):
    """What a rule measured on each row, which rows it drops, what it compared with, and a factor on their weights.

    A value that isn't known is NaN, and so is a threshold where nothing is compared.
    """

    value: Values
    drops: Flags
    threshold: Values | float = np.nan
    weight: Values | None = None


@dataclass(frozen=True)
class Evidence:
    """Complete rollouts. `groups` numbers their groups from 0 to `group_count` - 1; some may have no row here.

    Columns: `reward`, `passed` (nullable), `finish_reason`, `tokens`, `age` (iterations), `output`; the features,
    `score:GRADER`, `verdict:GRADER` and `uncertainty:GRADER` that the rules ask for. `earlier` holds what earlier
    nights kept, as `OutputSignature` rows with their `night` (1 is the last).
    """

    frame: pl.DataFrame
    groups: Groups
    group_count: int
    earlier: pl.DataFrame | None = None
    chosen: Int[np.ndarray, " rows"] | None = None

    def __len__(self) -> int:
        return len(self.groups)

    def series(self, name: str) -> pl.Series:
        """A column's values."""
        return self.frame[name] if self.chosen is None else self.frame[name].gather(self.chosen)

    def column(self, name: str) -> np.ndarray:
        """A column's values as an array; nulls of a number are NaN."""
        return self.series(name).to_numpy()

    def rows(self, chosen: Int[np.ndarray, " chosen"]) -> "Evidence":
        """Some of the rows; their columns are gathered when they are asked for."""
        if len(chosen) == len(self):
            return self
        within = chosen if self.chosen is None else self.chosen[chosen]
        return replace(self, groups=self.groups[chosen], chosen=within)

    def mean(self, values: Values) -> Values:
        """The group's mean of each row, over the values that are known; NaN where none is."""
        known = ~np.isnan(values)
        total = np.bincount(self.groups[known], values[known], minlength=self.group_count)
        count = np.bincount(self.groups[known], minlength=self.group_count)
        return np.divide(total, count, out=np.full(self.group_count, np.nan), where=count > 0)[self.groups]

    def deviation(self, values: Values) -> Values:
        """The group's standard deviation (ddof 0) of each row, over the values that are known; exactly 0 where all
        are equal.
        """
        spread = np.sqrt(self.mean((values - self.mean(values)) ** 2))
        low, high = np.full(self.group_count, np.inf), np.full(self.group_count, -np.inf)
        np.fmin.at(low, self.groups, values)
        np.fmax.at(high, self.groups, values)
        return np.where((low == high)[self.groups], 0.0, spread)

    def rank(self, values: Values) -> Values:
        """1 for the group's largest value, the first of equal ones before the others."""
        order = np.lexsort((np.arange(len(self)), -values, self.groups))
        counts = np.bincount(self.groups, minlength=self.group_count)
        ranks = np.empty(len(self))
        ranks[order] = np.arange(len(self)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
        return ranks


def flagged(flags: Flags) -> Finding:
    """A condition as a rule's finding: 1 where it holds and drops."""
    return Finding(flags.astype(np.float64), flags)
