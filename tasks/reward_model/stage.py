"""Stage reward_model: preferences and the policy's base model in, a scorer of answers out."""

from storage.artifacts import Artifact, Outputs
from storage.policies import resolve_policy
from tasks._devices import dtype_in_use
from tasks._stage import StageContext, stage
from tasks.reward_model.config import RewardModelConfig


@stage("reward_model", version=1, extra=dtype_in_use)
def train(
    preferences: Artifact, base: Artifact, config: RewardModelConfig, *, seed: int, context: StageContext
) -> Outputs:
    """A LoRA adapter and a scalar head on the base model, and how often they agree with held-out pairs."""
    from tasks.reward_model.train import train_reward_model  # loads torch

    trained = train_reward_model(
        preferences.read("preferences"),
        resolve_policy(base).base,
        config,
        seed=seed,
        scratch=context.scratch,
        progress=context.progress,
    )
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in sorted(trained.metrics.items()))
    context.log.info("reward model trained: %s", metrics)
    return Outputs(
        files={path.name: path for path in sorted(trained.folder.iterdir())},
        facts={"base": base.id},
        steps=trained.steps,
        scored_pairs=trained.scored_pairs,
        metrics=trained.metrics,
    )
