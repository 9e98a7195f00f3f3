"""Stage policy_update: trajectories and the policy that sampled them in, the next policy out."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from storage.artifacts import Artifact, Outputs
from storage.policies import base_of, resolve_policy
from tasks._devices import dtype_in_use
from tasks._stage import StageContext, stage
from tasks.policy_update.config import PolicyUpdateConfig
from tasks.policy_update.replay import choose_replayed
from tasks.policy_update.rows import check_served, join_replayed

if TYPE_CHECKING:
    from tasks.policy_update.policy import PolicyFolders


@stage("policy_update", version=4, extra=dtype_in_use)
def update(
    trajectories: Artifact,
    replayed: list[Artifact],
    preferences: Artifact | None,
    policy: Artifact,
    reference: Artifact | None,
    config: PolicyUpdateConfig,
    late: Mapping[str, Artifact] | None = None,
    *,
    seed: int,
    context: StageContext,
) -> Outputs:
    """The policy after some optimizer steps over the trajectories.

    `replayed` are the trajectories of earlier iterations, the newest first, of which the most informative groups train
    again; `late` those whose grades came only now, by their age in iterations; `preferences` the pairs of objectives on
    stored pairs; `reference` the reference policy, where it isn't the policy itself.
    """
    from tasks.policy_update.processes import update_in_processes  # loads torch
    from tasks.policy_update.update import Lessons, update_policy

    fresh = trajectories.read("trajectories")
    check_served(fresh, policy.fingerprint)
    again = choose_replayed(
        len(fresh),
        [(age, artifact.scan("trajectories")) for age, artifact in enumerate(replayed, start=1)],
        max_share=config.replay_share,
        max_age=config.correction.max_age,
    )
    older = [*again, *((int(age), artifact.read("trajectories")) for age, artifact in (late or {}).items())]
    lessons = Lessons(
        trajectories=join_replayed(fresh, older, config.correction.max_age),
        preferences=preferences.read("preferences") if preferences else None,
        reference=_folders(reference) if reference else None,
    )
    run = update_in_processes if config.processes > 1 else update_policy
    updated = run(lessons, _folders(policy), config, seed=seed, scratch=context.scratch, progress=context.progress)
    context.log.info("policy updated: %s", ", ".join(f"{k} {v:.4g}" for k, v in sorted(updated.metrics.items())))
    return Outputs(
        files={path.name: path for path in sorted(updated.folder.iterdir())},
        facts={"base": base_of(policy).id, "weights": config.parameters},
        steps=updated.steps,
        metrics=updated.metrics,
    )


def _folders(policy: Artifact) -> "PolicyFolders":
    from tasks.policy_update.policy import ADAPTER, FULL, PolicyFolders

    files = resolve_policy(policy)
    return PolicyFolders(files.base, files.full or files.adapter, FULL if files.full else ADAPTER)
