"""Metrics that can be merged: a micro-batch reports its part, the loop merges the parts of a step.

Merging is exact, so a metric doesn't depend on how a batch was cut into micro-batches (beyond rounding).
"""

from dataclasses import dataclass
from typing import Protocol, Self

from jaxtyping import Float
from torch import Tensor


class Metric(Protocol):
    """A number that is known in parts."""

    def merge(self, other: Self) -> Self:
        """The metric over both parts."""
        ...

    @property
    def value(self) -> float:
        """The metric over what was merged so far."""
        ...


@dataclass(frozen=True)
class Mean:
    """total / count; 0 when nothing was counted."""

    total: float
    count: float

    def merge(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else 0.0


@dataclass(frozen=True)
class Total:
    """A sum."""

    total: float

    def merge(self, other: "Total") -> "Total":
        return Total(self.total + other.total)

    @property
    def value(self) -> float:
        return self.total


@dataclass(frozen=True)
class Maximum:
    """The largest value seen."""

    value: float

    def merge(self, other: "Maximum") -> "Maximum":
        return Maximum(max(self.value, other.value))


def masked_mean(values: Float[Tensor, "rows time"], mask: Float[Tensor, "rows time"]) -> Mean:
    """The mean of `values` where `mask` is 1, as a mergeable metric."""
    return Mean(float((values.detach() * mask).sum()), float(mask.sum()))
