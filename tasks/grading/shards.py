"""How grading falls into shards: every grader times every slice of the rollouts.

The bounds follow from the number of shards alone, so a shard of an earlier attempt fits whenever that number is equal.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tasks.grading.config import GraderConfig, GradingConfig


class GradingShard(NamedTuple):
    """One grader on the `rows` rollouts from `first` on."""

    grader: GraderConfig
    first: int
    rows: int


def shard_count(rollouts: int, config: GradingConfig) -> int:
    """Shards for that many rollouts: at most `rows_per_shard` in each, at least one per grader."""
    return max(1, -(-rollouts // config.rows_per_shard)) * len(config.graders)


def shard_at(index: int, count: int, rollouts: int, graders: Sequence[GraderConfig]) -> GradingShard:
    """Shard `index` of `count`: all slices of the first grader, then of the next; slices are even to one rollout."""
    slices = count // len(graders)
    grader, part = divmod(index, slices)
    first, stop = part * rollouts // slices, (part + 1) * rollouts // slices
    return GradingShard(graders[grader], first, stop - first)
