"""Stage reward_model: preferences and the policy's base model in, a scorer of answers out."""

from storage.artifacts import Artifact, Outputs
from storage.policies import base_of, resolve_policy
from tasks._devices import dtype_in_use
from tasks._stage import StageContext, stage
from tasks.reward_model.config import RewardModelConfig


@stage("reward_model", version=2, extra=dtype_in_use)
def train(
    preferences: Artifact,
    base: Artifact,
    config: RewardModelConfig,
    *,
    pair_quality: Artifact | None = None,
    seed: int,
    context: StageContext,
) -> Outputs:
    """A LoRA adapter and scalar heads on a model, and how often they agree with held-out pairs.

    `base` is a base model, or the policy whose own weights it should come on top of. `pair_quality` says which training
    pairs are likely wrong. The fact `base` is what to score on top of, a policy's adapter lies in the files.
    """
    from tasks.reward_model.train import train_reward_model  # loads torch

    files = resolve_policy(base)
    trained = train_reward_model(
        preferences.read("preferences"),
        files.weights,
        config,
        seed=seed,
        scratch=context.scratch,
        progress=context.progress,
        policy=files.adapter,
        quality=pair_quality.read("pair_quality") if pair_quality else None,
    )
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in sorted(trained.metrics.items()))
    context.log.info("reward model trained: %s", metrics)
    return Outputs(
        files={path.name: path for path in sorted(trained.folder.iterdir())},
        facts={"base": base_of(base).id if files.full is None else base.id},
        steps=trained.steps,
        scored_pairs=trained.scored_pairs,
        metrics=trained.metrics,
    )
