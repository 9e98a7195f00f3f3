"""The stages that make the batches of rounds. A round is one draw of prompts; screening samples it in two goes."""

from collections.abc import Sequence

import polars as pl

from storage.artifacts import Artifact, Outputs
from storage.config_base import StrictConfig
from tasks._stage import StageContext, stage
from tasks.select.rounds import draw_more, first_samples, join_batches, rest_of
from tasks.select.rounds_config import DrawMoreConfig, ScreeningConfig
from tasks.select.stage import greso_rates

# Joining rounds has no options.
NOTHING = StrictConfig()


@stage("select_more", version=1)
def select_more(
    prompts: Artifact, history: Artifact, drawn: Sequence[Artifact], config: DrawMoreConfig, *, seed: int
) -> Outputs:
    """The batch of a further round: prompts that this iteration hasn't `drawn`, and the history after it."""
    before = pl.concat([each.scan("batch").select("prompt_id") for each in drawn]).collect()
    known, rates = history.read("prompt_history"), greso_rates(history)
    batch, after = draw_more(prompts.read("prompts"), known, before, config, seed, rates)
    metrics = {"prompts": float(len(batch)), "rollouts": float(batch["samples"].sum()), "pool": float(len(after))}
    return Outputs(metrics=metrics, facts=history.manifest.facts, batch=batch, prompt_history=after)


@stage("screening", version=1)
def screen(drawn: Artifact, config: ScreeningConfig) -> Outputs:
    """The drawn prompts with their first samples alone."""
    batch = first_samples(drawn.read("batch"), config.samples)
    return Outputs(metrics={"prompts": float(len(batch)), "rollouts": float(batch["samples"].sum())}, batch=batch)


@stage("rest", version=1)
def go_on(
    drawn: Artifact,
    first: Artifact,
    rollouts: Artifact,
    grading: Artifact,
    config: ScreeningConfig,
    *,
    context: StageContext,
) -> Outputs:
    """The rest of the samples of those prompts whose `first` ones vary; what the first say of all prompts, unbiased."""
    prompt_of = rollouts.scan("rollouts").select("rollout_id", "prompt_id")
    known = grading.scan("rewards").filter("complete").select("rollout_id", "reward")
    rewards = known.join(prompt_of, on="rollout_id", how="inner").collect()
    rest = rest_of(drawn.read("batch"), first.read("batch"), rewards, config.min_std)
    metrics = {
        "prompts": float(len(rest.batch)),
        "rollouts": float(rest.batch["samples"].sum()),
        "screened_out": float(rest.screened_out),
        "rollouts_saved": float(rest.rollouts_saved),
        **_first_rates(rewards, grading),
    }
    context.log.info(
        "screening: %d prompts go on, %d don't, which saves %d rollouts",
        metrics["prompts"],
        rest.screened_out,
        rest.rollouts_saved,
    )
    return Outputs(metrics=metrics, batch=rest.batch, sampled_before=rest.sampled_before)


@stage("joined_batch", version=1)
def join_drawn(batches: Sequence[Artifact], rests: Sequence[Artifact], survivors: Sequence[Artifact]) -> Outputs:
    """One batch of all that an iteration sampled, and what its rounds came to.

    `rests` are what screening decided, `survivors` how many groups had survived after each round; either may be empty.
    """
    batch = join_batches([each.read("batch") for each in batches])
    metrics = {"prompts": float(len(batch)), "rollouts": float(batch["samples"].sum())}
    for name in ("screened_out", "rollouts_saved"):
        metrics |= {name: sum(each.metrics[name] for each in rests)} if rests else {}
    for name in ("first_reward_mean", "first_pass_rate"):
        metrics |= _weighted(name, rests)
    metrics["rounds"] = float(max(len(survivors), 1))
    if survivors:
        metrics["refilled_groups"] = survivors[-1].metrics["surviving"] - survivors[0].metrics["surviving"]
        metrics["surviving_groups"] = survivors[-1].metrics["surviving"]
    return Outputs(metrics=metrics, batch=batch)


def _first_rates(rewards: pl.DataFrame, grading: Artifact) -> dict[str, float]:
    """Mean reward of the first samples, and the share that passes: every verdict on a sample holds."""
    verdicts = grading.scan("grades").filter(pl.col("passed").is_not_null())
    passed = verdicts.group_by("rollout_id").agg(pl.col("passed").all())
    rates = {
        "first_reward_mean": rewards["reward"].mean(),
        "first_pass_rate": passed.select(pl.col("passed").cast(pl.Float64).mean()).collect().item(),
    }
    return {"first_rollouts": float(len(rewards))} | {
        name: float(rate) for name, rate in rates.items() if isinstance(rate, float)
    }


def _weighted(name: str, rests: Sequence[Artifact]) -> dict[str, float]:
    """The mean of a rate over rounds, each by its first samples; none where no round has it."""
    known = [(each.metrics[name], each.metrics["first_rollouts"]) for each in rests if name in each.metrics]
    total = sum(rollouts for _, rollouts in known)
    return {name: sum(rate * rollouts for rate, rollouts in known) / total} if total else {}
