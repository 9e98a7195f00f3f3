"""The batches of rounds, pure: a few samples first, the rest of some prompts, other prompts, and all of it together."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from storage.records import BatchEntry, PromptUse, SampledBefore
from tasks.select.draw import draw, iteration_after
from tasks.select.rounds_config import DrawMoreConfig, RefillConfig
from tasks.select.strategies import Rates


class Rest(NamedTuple):
    """The prompts that go on after their first samples, how many those were, and what was spared."""

    batch: pl.DataFrame
    sampled_before: pl.DataFrame
    screened_out: int
    rollouts_saved: int


class Survival(NamedTuple):
    """How an iteration stands after a round: its rounds, the prompts drawn, and their groups that survive."""

    rounds: int
    prompts: int
    groups: int


def first_samples(batch: pl.DataFrame, samples: int) -> pl.DataFrame:
    """The `BatchEntry` rows with at most so many samples each."""
    return batch.with_columns(pl.col("samples").clip(upper_bound=samples))


def rest_of(batch: pl.DataFrame, first: pl.DataFrame, rewards: pl.DataFrame, min_std: float) -> Rest:
    """The prompts whose first rewards vary, each with the samples that it hasn't had yet.

    `rewards` holds `prompt_id` and `reward` of the first samples that have one: a prompt without two of them doesn't
    vary. SPEED-RL (arXiv 2506.09016) goes on where the standard deviation is above 0.
    """
    spread = rewards.group_by("prompt_id").agg(pl.col("reward").std(ddof=0).alias("spread"))
    before = first.select("prompt_id", pl.col("samples").alias("before"))
    asked = (
        batch.join(before, on="prompt_id", how="inner", maintain_order="left")
        .join(spread, on="prompt_id", how="left", maintain_order="left")
        .with_columns((pl.col("samples") - pl.col("before")).alias("samples"))
        .filter(pl.col("samples") > 0)
    )
    varies = (pl.col("spread") > min_std).fill_null(False)
    going_on, out = asked.filter(varies), asked.filter(~varies)
    return Rest(
        batch=_numbered(going_on),
        sampled_before=going_on.select("prompt_id", pl.col("before").alias("samples")).select(
            SampledBefore.column_names()
        ),
        screened_out=len(out),
        rollouts_saved=int(out["samples"].sum()),
    )


def prompts_wanted(stand: Survival, pool: int, most: int, config: RefillConfig) -> int:
    """How many prompts the next round draws; 0 where there is none.

    As many as the missing groups need at the share that survived so far, at most `most` and what the pool still has.
    No round follows when enough groups survive, after `max_rounds`, or when every prompt of the pool was drawn.
    """
    missing = config.groups - stand.groups
    if missing <= 0 or stand.rounds >= config.max_rounds:
        return 0
    needed = math.ceil(missing * stand.prompts / stand.groups) if stand.groups else most
    return max(0, min(needed, most, pool - stand.prompts))


def draw_more(
    prompts: pl.DataFrame,
    history: pl.DataFrame,
    drawn: pl.DataFrame,
    config: DrawMoreConfig,
    seed: int,
    rates: Rates | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A further `BatchEntry` frame of the same iteration, and the `PromptUse` frame after it.

    `history` is the one after the round before, `drawn` holds the `prompt_id`s that the iteration has drawn already:
    none of them comes again in it, whatever the strategy. `rates` are GRESO's.
    """
    others = prompts.join(drawn, on="prompt_id", how="anti")
    select = config.select.model_copy(update={"prompts_per_iteration": config.prompts})
    # The history holds draws of this iteration already: the one after it would be the next.
    batch, after = draw(others, history, select, iteration_after(history) - 1, seed, rates)
    untouched = history.join(after, on="prompt_id", how="anti")
    columns = PromptUse.column_names()
    return batch, pl.concat([after.select(columns), untouched.select(columns)]).sort("prompt_id")


def join_batches(batches: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The `BatchEntry` frame of all rounds: every prompt once, at its first place, with all of its samples."""
    every = pl.concat(batches)
    samples = every.group_by("prompt_id").agg(pl.col("samples").sum())
    once = every.unique("prompt_id", keep="first", maintain_order=True).drop("samples")
    return _numbered(once.join(samples, on="prompt_id", how="inner", maintain_order="left"))


def _numbered(entries: pl.DataFrame) -> pl.DataFrame:
    numbered = entries.drop("position").with_row_index("position").with_columns(pl.col("position").cast(pl.Int32))
    return numbered.select(BatchEntry.column_names())
