"""The stage `select`: the pool -> this iteration's batch, or the fixed held-out batch."""

from storage.artifacts import Artifact, Outputs
from tasks._stage import stage
from tasks.select.config import EvalSelectConfig, SelectConfig
from tasks.select.draw import draw, held_out, iteration_after


@stage("select", version=2)
def select(prompts: Artifact, history: Artifact | None, config: SelectConfig, *, seed: int) -> Outputs:
    """This iteration's batch, and how often each prompt was drawn including it."""
    used = history.read("prompt_history") if history is not None else None
    batch, after = draw(prompts.read("prompts"), used, config, iteration_after(used), seed)
    metrics = {
        "prompts": float(len(batch)),
        "rollouts": float(batch["samples"].sum()),
        "pool": float(len(after)),
        "never_drawn": float((after["times_drawn"] == 0).sum()),
    }
    return Outputs(metrics=metrics, batch=batch, prompt_history=after)


@stage("select", version=2)
def select_held_out(prompts: Artifact, config: EvalSelectConfig, *, seed: int) -> Outputs:
    """The held-out batch, the same for every iteration and every policy."""
    batch = held_out(prompts.read("prompts"), config, seed)
    return Outputs(
        metrics={"eval_prompts": float(len(batch)), "eval_rollouts": float(batch["samples"].sum())}, batch=batch
    )
