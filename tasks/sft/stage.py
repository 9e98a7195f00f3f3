"""Stage sft: a base model in, the policy that demonstrations made of it out."""

from typing import Any

from storage.artifacts import Artifact, Outputs
from storage.policies import base_of, resolve_policy
from tasks._devices import dtype_in_use
from tasks._stage import StageContext, stage
from tasks.sft.config import SftConfig
from tasks.sft.demonstrations import source_digests


def decided_by(config: SftConfig) -> list[Any]:
    """What decides the result besides the configuration: the sources' content and the precision on this machine."""
    return [source_digests(config), dtype_in_use(config)]


@stage("sft", version=1, extra=decided_by)
def fine_tune(base: Artifact, config: SftConfig, *, seed: int, context: StageContext) -> Outputs:
    """An adapter on the base model, as policy updates make them; rows that can't be taught, with their reasons."""
    from tasks.sft.train import fine_tune_on_demonstrations  # loads torch

    tuned = fine_tune_on_demonstrations(
        resolve_policy(base).base, config, seed=seed, scratch=context.scratch, progress=context.progress
    )
    context.log.info("sft: %s", ", ".join(f"{name} {value:.4g}" for name, value in sorted(tuned.metrics.items())))
    return Outputs(
        files={path.name: path for path in sorted(tuned.adapter_folder.iterdir())},
        facts={"base": base_of(base).id, "weights": "lora"},
        steps=tuned.steps,
        rejected=tuned.rejected,
        metrics=tuned.metrics,
    )
