"""Drawing prompts, pure: from the pool and its history to this iteration's batch."""

from typing import NamedTuple

import numpy as np
import polars as pl

from storage.errors import InputError
from storage.fingerprints import derive_seed
from storage.records import BatchEntry, PromptUse
from tasks._maths.posteriors import Beta, expected_informative, relax
from tasks.select.allocation import ALLOCATIONS
from tasks.select.choose import choose
from tasks.select.config import EvalSelectConfig, SelectConfig
from tasks.select.history_config import HistoryConfig
from tasks.select.strategies import Known, Rates
from tasks.select.strategy_config import GresoConfig


class Draw(NamedTuple):
    """The drawn `prompt_id` with their `samples` in order, the `PromptUse` frame after it, and what there is to say."""

    drawn: pl.DataFrame
    history: pl.DataFrame
    metrics: dict[str, float]


def draw(
    prompts: pl.DataFrame,
    history: pl.DataFrame | None,
    config: SelectConfig,
    iteration: int,
    seed: int,
    rates: Rates | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The `BatchEntry` frame of this iteration and the `PromptUse` frame after it; see `draw_prompts`."""
    found = draw_prompts(prompts, history, config, iteration, seed, rates)
    return batch_of(found.drawn.join(prompts, on="prompt_id", how="left", maintain_order="left")), found.history


def draw_prompts(
    prompts: pl.DataFrame,
    history: pl.DataFrame | None,
    config: SelectConfig,
    iteration: int,
    seed: int,
    rates: Rates | None = None,
) -> Draw:
    """This iteration's prompts by the strategy, and how many rollouts each of them gets.

    `prompts` needs the columns `prompt_id` and `split`, in any order of rows; `rates` are GRESO's, by default those it
    starts from. Raises `InputError` when the pool is smaller than `prompts_per_iteration`.
    """
    used = PromptUse.create_empty() if history is None else history
    pool = prompts.filter(pl.col("split") == "train").select("prompt_id").sort("prompt_id")
    if len(pool) < config.prompts_per_iteration:
        raise InputError(
            f"select.prompts_per_iteration is {config.prompts_per_iteration} but the pool has {len(pool)} training "
            "prompts; lower it, or give curate more prompts or a smaller held-out part"
        )
    counted = pool.join(used, on="prompt_id", how="left", maintain_order="left").with_columns(
        pl.col("times_drawn", "last_iteration").fill_null(0)
    )
    known = known_of(counted, config.history, iteration, rates or starting_rates(config))
    # Every cycle is shuffled anew: what was drawn so far is part of the seed.
    chosen = choose(known, config, derive_seed(seed, "select", int(used["times_drawn"].sum())))
    posterior = Beta(known.posterior.alpha[chosen.places], known.posterior.beta[chosen.places])
    budget = config.prompts_per_iteration * config.samples_per_prompt
    samples = ALLOCATIONS[config.allocation.name](posterior, budget, config.allocation)
    after = _drawn_once_more(counted, chosen.places, iteration)
    metrics = {
        "prompts": float(len(chosen.places)),
        "rollouts": float(samples.sum()),
        "pool": float(len(after)),
        "never_drawn": float((after["times_drawn"] == 0).sum()),
        "retired": float(chosen.retired),
        "explored": float(chosen.explored),
        "rehearsed": float(chosen.rehearsed),
        "expected_informative": float(expected_informative(posterior, samples).mean()),
        "posterior_mean": float(posterior.mean.mean()),
    }
    drawn = counted[chosen.places].select("prompt_id", pl.Series("samples", samples, pl.Int32))
    return Draw(drawn, after, metrics)


def known_of(counted: pl.DataFrame, config: HistoryConfig, iteration: int, rates: Rates) -> Known:
    """`PromptUse` rows as arrays: the prior where nothing is known, old evidence relaxed by the iterations since."""
    alpha, beta = (
        counted[name].fill_null(prior).to_numpy() for name, prior in zip(("alpha", "beta"), config.prior, strict=True)
    )
    idle = (iteration - 1 - counted["last_outcome"].fill_null(iteration - 1).to_numpy()).clip(min=0)
    return Known(
        times_drawn=counted["times_drawn"].to_numpy(),
        last_iteration=counted["last_iteration"].to_numpy(),
        observed=counted["alpha"].is_not_null().to_numpy(),
        posterior=relax(Beta(alpha, beta), config.prior, config.idle_discount ** idle.astype(np.float64)),
        prior=config.prior,
        reward_variance=counted["reward_variance"].fill_null(float("nan")).to_numpy(),
        easy_streak=counted["easy_streak"].fill_null(0).to_numpy(),
        hard_streak=counted["hard_streak"].fill_null(0).to_numpy(),
        rates=rates,
    )


def starting_rates(config: SelectConfig) -> Rates:
    """GRESO's p before any adapting."""
    start = config.strategy.start if isinstance(config.strategy, GresoConfig) else GresoConfig().start
    return Rates(start, start)


def _drawn_once_more(counted: pl.DataFrame, places: np.ndarray, iteration: int) -> pl.DataFrame:
    times, last = counted["times_drawn"].to_numpy().copy(), counted["last_iteration"].to_numpy().copy()
    times[places] += 1
    last[places] = iteration
    now = [pl.Series("times_drawn", times, pl.Int32), pl.Series("last_iteration", last, pl.Int32)]
    return counted.with_columns(now).select(PromptUse.column_names())


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


def batch_of(drawn: pl.DataFrame, samples: int | None = None) -> pl.DataFrame:
    """The drawn `Prompt` rows as `BatchEntry` rows, in their order; `samples` each, or their own column `samples`."""
    count = pl.col("samples") if samples is None else pl.lit(samples)
    numbered = drawn.with_row_index("position").with_columns(
        pl.col("position").cast(pl.Int32), count.cast(pl.Int32).alias("samples")
    )
    return numbered.select(BatchEntry.column_names())
