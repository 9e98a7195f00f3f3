"""The stages `select` and `history`: the pool -> this iteration's batch, or the fixed held-out batch; and what the
rollouts of a batch say of its prompts -> the history that the next iteration draws from.
"""

from collections.abc import Sequence

import polars as pl

from storage.artifacts import Artifact, Outputs
from tasks._stage import StageContext, stage
from tasks.select.config import EvalSelectConfig, SelectConfig
from tasks.select.draw import batch_of, draw_prompts, held_out, iteration_after, starting_rates
from tasks.select.history_config import OutcomesConfig
from tasks.select.outcomes import (
    adapted_rates,
    after_outcomes,
    history_metrics,
    outcomes_of,
    recomputed,
    without_stale,
)
from tasks.select.strategies import Rates
from tasks.select.strategy_config import GresoConfig

RATES = "greso_rates"


@stage("select", version=2)
def select(prompts: Artifact, history: Artifact | None, config: SelectConfig, *, seed: int) -> Outputs:
    """This iteration's batch, and how often each prompt was drawn including it."""
    used = history.read("prompt_history") if history is not None else None
    pool = prompts.scan("prompts")
    rates = greso_rates(history)
    ids = pool.select("prompt_id", "split").collect()
    found = draw_prompts(ids, used, config, iteration_after(used), seed, rates)
    rows = pool.filter(pl.col("prompt_id").is_in(found.drawn["prompt_id"].implode())).collect()
    batch = batch_of(found.drawn.join(rows, on="prompt_id", how="left", maintain_order="left"))
    adapting = isinstance(config.strategy, GresoConfig)
    facts = {RATES: list(rates or starting_rates(config))} if adapting else {}
    return Outputs(metrics=found.metrics, facts=facts, batch=batch, prompt_history=found.history)


@stage("select", version=2)
def select_held_out(prompts: Artifact, config: EvalSelectConfig, *, seed: int) -> Outputs:
    """The held-out batch, the same for every iteration and every policy."""
    batch = held_out(prompts.read("prompts"), config, seed)
    return Outputs(
        metrics={"eval_prompts": float(len(batch)), "eval_rollouts": float(batch["samples"].sum())}, batch=batch
    )


@stage("history", version=1)
def record_outcomes(
    history: Artifact,
    rollouts: Sequence[Artifact],
    rewards: Sequence[Artifact],
    earlier_rollouts: Sequence[Artifact],
    earlier_grades: Sequence[Artifact],
    config: OutcomesConfig,
    *,
    context: StageContext,
) -> Outputs:
    """The history after an iteration: `history` holds its draws, `rewards` the grades and rewards of its `rollouts`.

    All rollouts count, also those that a filter will drop: what survives it says too much of the middle. The `earlier`
    iterations, the oldest first, are given where who makes the outcomes changed: their stored grades give what can be
    known again.
    """
    known = without_stale(history.read("prompt_history"), config)
    iteration = iteration_after(known) - 1
    before = []
    for sampled, graded in zip(earlier_rollouts, earlier_grades, strict=True):
        told = outcomes_of(sampled.scan("rollouts"), graded.scan("grades"), None, config)
        before.append((int(sampled.scan("rollouts").select(pl.col("iteration").max()).collect().item()), told))
    known = recomputed(known, before, config)
    outcomes = outcomes_of(
        pl.concat([each.scan("rollouts").select("rollout_id", "prompt_id") for each in rollouts]),
        pl.concat([each.scan("grades") for each in rewards]),
        pl.concat([each.scan("rewards") for each in rewards]),
        config,
    )
    known = after_outcomes(known, outcomes, iteration, config)
    metrics = history_metrics(known, outcomes)
    if metrics["clipped"]:
        low, high = config.history.reward_range
        context.log.warning(
            "history: %d of %d outcomes lie outside select.history.reward_range, %g to %g, and count as its nearer "
            "end; set it to what the grader gives",
            metrics["clipped"],
            metrics["outcomes"],
            low,
            high,
        )
    facts: dict[str, list[float]] = {}
    if config.skipping is not None:
        rates = greso_rates(history) or Rates(config.skipping.start, config.skipping.start)
        adapted = adapted_rates(rates, outcomes, config.skipping)
        facts = {RATES: list(adapted)}
        metrics |= {"greso_easy": adapted.easy, "greso_hard": adapted.hard}
    return Outputs(metrics=metrics, facts=facts, prompt_history=known)


def greso_rates(history: Artifact | None) -> Rates | None:
    """GRESO's p as a history carries them; None where no earlier iteration adapted them."""
    found = history.manifest.facts.get(RATES) if history is not None else None
    return Rates(*found) if found else None
