"""How many groups survive the filter after a round: what a refill goes by. Nothing is kept or dropped here."""

from collections.abc import Sequence

import polars as pl

from storage.artifacts import Artifact, Outputs
from tasks._stage import StageContext, stage
from tasks.filtering.config import FilteringConfig
from tasks.filtering.stage import decisions, filter_rollouts, signatures_stored


def rules_version() -> int:
    """The version of the rules, which are those of the stage `filtering`: part of the fingerprint."""
    return filter_rollouts.version


@stage("survivors", version=1, extra=rules_version)
def count_survivors(
    rollouts: Sequence[Artifact],
    rewards: Artifact,
    config: FilteringConfig,
    earlier: Sequence[Artifact] = (),
    *,
    context: StageContext,
) -> Outputs:
    """The groups of the rounds so far, and how many of them have a rollout that every rule keeps.

    `earlier` as in `filter_rollouts`.
    """
    stored = signatures_stored(earlier)
    decided = decisions(rollouts, rewards, config, earlier=stored, iteration=context.iteration)
    groups = decided.group_by("group_id").agg(pl.col("kept").any())
    counts = {"groups": len(groups), "surviving": int(groups["kept"].sum())}
    return Outputs(metrics={name: float(count) for name, count in counts.items()}, facts=counts)
