"""The stage `filtering`: rollouts and rewards -> trajectories with advantages, and the ledger."""

from collections.abc import Sequence
from itertools import chain

import polars as pl

from storage.artifacts import Artifact, Outputs
from tasks._stage import StageContext, stage
from tasks.filtering.config import FilteringConfig
from tasks.filtering.features import MEASURED_COLUMNS
from tasks.filtering.graded import Graded, graders_pass_rate
from tasks.filtering.metrics import filter_metrics
from tasks.filtering.output_rules import signatures_of
from tasks.filtering.trajectories import TRAINED_COLUMNS, decide, drop_trained, ledger_frames, trajectory_frames

# Rollouts whose texts and tokens are in memory at once.
BATCH_ROWS = 16_384


@stage("filtering", version=3)
def filter_rollouts(
    rollouts: Artifact,
    rewards: Artifact,
    config: FilteringConfig,
    trained: Sequence[Artifact] = (),
    earlier: Sequence[Artifact] = (),
    *,
    context: StageContext,
) -> Outputs:
    """What will train, and for every rollout whether it is kept, by which rule, at what value.

    `trained` are what this stage made of the same rollouts before, when fewer grades were there: no group of theirs
    is kept again. `earlier` are what it made of earlier nights' rollouts, the newest first: `redundant_across` compares
    with them.
    """
    decided = decisions([rollouts], rewards, config, earlier=signatures_stored(earlier), iteration=context.iteration)
    if trained:
        decided = drop_trained(decided, [each.scan("trajectories") for each in trained])
    grades = graded_by(rewards).grades
    metrics = filter_metrics(decided, None if grades is None else graders_pass_rate(grades))
    context.log.info("filtering: %d of %d rollouts kept", metrics["kept"], len(decided))
    sampled = rollouts.batches("rollouts", TRAINED_COLUMNS, BATCH_ROWS)
    outputs = Outputs(metrics=metrics, trajectories=trajectory_frames(sampled, decided), ledger=ledger_frames(decided))
    if config.stores_signatures:
        outputs.tables["signatures"] = signatures_of(decided)
    return outputs


def decisions(
    rollouts: Sequence[Artifact],
    rewards: Artifact,
    config: FilteringConfig,
    *,
    earlier: pl.DataFrame | None = None,
    iteration: int | None = None,
) -> pl.DataFrame:
    """What `decide` says of the rollouts of one or several artifacts, read in pieces."""
    batches = chain.from_iterable(each.batches("rollouts", MEASURED_COLUMNS, BATCH_ROWS) for each in rollouts)
    return decide(batches, graded_by(rewards), config, earlier=earlier, iteration=iteration)


def graded_by(rewards: Artifact) -> Graded:
    """The rewards of an artifact, with the grades behind them where it holds them."""
    grades = rewards.scan("grades") if "grades" in rewards.manifest.tables else None
    return Graded(rewards.scan("rewards"), grades)


def signatures_stored(earlier: Sequence[Artifact]) -> pl.DataFrame | None:
    """What earlier nights, the newest first, kept, with how many nights ago; None where no night stored it."""
    stored = [
        each.scan("signatures").with_columns(night=pl.lit(night))
        for night, each in enumerate(earlier, start=1)
        if "signatures" in each.manifest.tables
    ]
    return pl.concat(stored).collect() if stored else None
