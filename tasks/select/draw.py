"""Drawing prompts, pure: a whole cycle through the pool before any prompt comes again."""

import numpy as np
import polars as pl

from storage.errors import InputError
from storage.fingerprints import derive_seed
from storage.records import BatchEntry, PromptUse
from tasks.select.config import EvalSelectConfig, SelectConfig


def draw(
    prompts: pl.DataFrame, history: pl.DataFrame | None, config: SelectConfig, iteration: int, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The `BatchEntry` frame of this iteration and the `PromptUse` frame after it.

    The least drawn training prompts first, in a seeded shuffle among equals that doesn't depend on the order of
    `prompts`. Raises `InputError` when the pool is smaller than `prompts_per_iteration`.
    """
    pool = prompts.filter(pl.col("split") == "train")
    if len(pool) < config.prompts_per_iteration:
        raise InputError(
            f"select.prompts_per_iteration is {config.prompts_per_iteration} but the pool has {len(pool)} training "
            "prompts; lower it, or give curate more prompts or a smaller held-out part"
        )
    used = PromptUse.create_empty() if history is None else history
    known = pool.select("prompt_id").join(used, on="prompt_id", how="left")
    counted = known.with_columns(pl.col("times_drawn", "last_iteration").fill_null(0))
    # Every cycle is shuffled anew: what was drawn so far is part of the seed.
    order = shuffled(pool, derive_seed(seed, "select", int(used["times_drawn"].sum())))
    ranked = order.join(counted, on="prompt_id", maintain_order="left").sort("times_drawn", maintain_order=True)
    drawn = ranked.head(config.prompts_per_iteration)
    now = pl.col("prompt_id").is_in(drawn["prompt_id"].implode())
    after = counted.sort("prompt_id").with_columns(
        pl.when(now).then(pl.col("times_drawn") + 1).otherwise("times_drawn").cast(pl.Int32).alias("times_drawn"),
        pl.when(now).then(pl.lit(iteration)).otherwise("last_iteration").cast(pl.Int32).alias("last_iteration"),
    )
    return batch_of(drawn, config.samples_per_prompt), after.select(PromptUse.column_names())


def iteration_after(history: pl.DataFrame | None) -> int:
    """The iteration that follows a history, counted from 1: it depends on the inputs alone, not on the clock."""
    return 1 if history is None or history.is_empty() else 1 + int(history["last_iteration"].to_numpy().max())


def held_out(prompts: pl.DataFrame, config: EvalSelectConfig, seed: int) -> pl.DataFrame:
    """The fixed `BatchEntry` frame of held-out prompts. Raises `InputError` when there are too few."""
    pool = prompts.filter(pl.col("split") == "eval")
    wanted = config.eval_prompts or len(pool)
    if not len(pool) or len(pool) < wanted:
        raise InputError(
            f"the evaluation wants {config.eval_prompts or 'some'} held-out prompts but the pool has {len(pool)}; "
            "raise curate.eval_prompts or curate.eval_fraction, or lower the evaluation's eval_prompts"
        )
    return batch_of(shuffled(pool, derive_seed(seed, "held-out")).head(wanted), config.samples_per_prompt)


def shuffled(pool: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The prompts in an order that follows from their ids and the seed alone."""
    order = np.random.default_rng(seed).permutation(len(pool))
    return pool.sort("prompt_id")[order]


def batch_of(drawn: pl.DataFrame, samples: int) -> pl.DataFrame:
    """The drawn `Prompt` rows as `BatchEntry` rows, in their order."""
    numbered = drawn.with_row_index("position").with_columns(
        pl.col("position").cast(pl.Int32), pl.lit(samples, pl.Int32).alias("samples")
    )
    return numbered.select(BatchEntry.column_names())
