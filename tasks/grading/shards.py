"""How grading falls into shards: every grader times every run of `rows_per_shard` rollouts."""

from typing import NamedTuple

from tasks.grading.config import GraderConfig, GradingConfig


class GradingShard(NamedTuple):
    """One grader on the rollouts from `first` on, `rows` of them at most."""

    grader: GraderConfig
    first: int
    rows: int


def shard_count(rollouts: int, config: GradingConfig) -> int:
    """Shards for that many rollouts."""
    return _slices(rollouts, config) * len(config.graders)


def shard_at(index: int, rollouts: int, config: GradingConfig) -> GradingShard:
    """The shard at an index: all slices of the first grader, then of the next."""
    grader, part = divmod(index, _slices(rollouts, config))
    return GradingShard(config.graders[grader], part * config.rows_per_shard, config.rows_per_shard)


def _slices(rollouts: int, config: GradingConfig) -> int:
    return max(1, -(-rollouts // config.rows_per_shard))
