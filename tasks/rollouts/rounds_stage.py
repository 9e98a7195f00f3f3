"""The stage that brings the rollouts of an iteration's rounds together, so that a group lies in one place."""

from collections.abc import Iterator, Sequence

import polars as pl

from storage.artifacts import Artifact, Outputs
from tasks._stage import StageContext, stage
from tasks.rollouts.rounds import Feed, in_order, joined_metrics, turns_of
from tasks.rollouts.table import COLUMNS

ROWS_AT_ONCE = 8192


@stage("joined_rollouts", version=1)
def join_rollouts(
    batch: Artifact,
    batches: Sequence[Artifact],
    rollouts: Sequence[Artifact],
    *,
    context: StageContext,
) -> Outputs:
    """The rollouts of all rounds in the order of the joined `batch`; `batches` are what each was sampled from.

    A few thousand rollouts are in memory at a time.
    """
    entries = batch.read("batch")
    turns = turns_of(entries, [each.read("batch") for each in batches], ROWS_AT_ONCE)
    feeds = [Feed(each.batches("rollouts", COLUMNS, ROWS_AT_ONCE)) for each in rollouts]

    def frames() -> Iterator[pl.DataFrame]:
        done = 0
        for counts in turns:
            parts = [piece for feed, count in zip(feeds, counts, strict=True) for piece in feed.take(count)]
            done += sum(counts)
            context.progress(done, int(entries["samples"].sum()), "rollouts")
            yield in_order(pl.concat(parts), entries)

    return Outputs(metrics=joined_metrics([each.metrics for each in rollouts]), rollouts=frames())
