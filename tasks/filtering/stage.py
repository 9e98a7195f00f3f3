"""The stage `filtering`: rollouts and rewards -> trajectories with advantages, and the ledger."""

from collections.abc import Sequence

import polars as pl

from storage.artifacts import Artifact, Outputs
from tasks._stage import StageContext, stage
from tasks.filtering.config import FilteringConfig
from tasks.filtering.trajectories import decide, drop_trained, filter_metrics, ledger_of, trajectories_of


@stage("filtering", version=2)
def filter_rollouts(
    rollouts: Artifact,
    rewards: Artifact,
    config: FilteringConfig,
    trained: Sequence[Artifact] = (),
    *,
    context: StageContext,
) -> Outputs:
    """What will train, and for every rollout whether it is kept, by which rule, at what value.

    `trained` are what this stage made of the same rollouts before, when fewer grades were there: no group of theirs
    is kept again.
    """
    sampled = rollouts.scan("rollouts")
    decided = decide(sampled, rewards.scan("rewards"), config)
    if trained:
        decided = drop_trained(decided, [each.scan("trajectories") for each in trained])
    newest = sampled.select(pl.col("iteration").max()).collect().item()
    metrics = filter_metrics(decided)
    context.log.info("filtering: %d of %d rollouts kept", metrics["kept"], len(decided))
    return Outputs(
        metrics=metrics,
        trajectories=trajectories_of(sampled, decided, newest),
        ledger=ledger_of(decided),
    )
