"""Stage policy_update: trajectories and the policy that sampled them in, the next policy out."""

from storage.artifacts import Artifact, Outputs
from storage.policies import base_of, resolve_policy
from tasks._stage import StageContext, stage
from tasks.policy_update.config import PolicyUpdateConfig
from tasks.policy_update.update import update_policy


@stage("policy_update", version=1)
def update(
    trajectories: Artifact, policy: Artifact, config: PolicyUpdateConfig, *, seed: int, context: StageContext
) -> Outputs:
    """The policy's adapter after one pass of optimizer steps over the trajectories."""
    served = resolve_policy(policy)
    updated = update_policy(
        trajectories.read("trajectories"),
        served.base,
        served.adapter,
        config,
        seed=seed,
        scratch=context.scratch,
        progress=context.progress,
    )
    files = {path.name: path for path in sorted(updated.adapter_folder.iterdir())}
    context.log.info("policy updated: %s", ", ".join(f"{k} {v:.4g}" for k, v in sorted(updated.metrics.items())))
    facts = {"base": base_of(policy).id}
    return Outputs(files=files, facts=facts, steps=updated.steps, metrics=updated.metrics)
