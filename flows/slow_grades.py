"""The part of an iteration that follows where graders are slow: ask, settle, and take up what came for earlier ones."""

from typing import NamedTuple

from flows.config import RunConfig
from storage.artifacts import Artifact
from storage.campaigns import Campaign, State
from storage.fingerprints import derive_seed
from tasks._stage import RunContext
from tasks.filtering.stage import filter_rollouts
from tasks.grading.config import GradingConfig
from tasks.grading.stage import ask_slow, settle

ASK, LATE_REWARDS, LATE_FILTERING = "slow-grading", "late-rewards", "late-filtering"


class Graded(NamedTuple):
    """An iteration's rollouts and what its instant graders say of them."""

    rollouts: Artifact
    batch: Artifact
    grading: Artifact


class Settled(NamedTuple):
    """The rewards of this iteration, late trajectories by age in iterations, and the artifact with the open grades."""

    rewards: Artifact
    late: dict[str, Artifact]
    pending: str | None


def settle_grades(state: State, config: RunConfig, run: RunContext, graded: Graded, graders: GradingConfig) -> Settled:
    """Without slow graders, and with nothing open from before, the instant grades are all there is."""
    if not graders.slow and state.pending_grades is None:
        return Settled(graded.grading, {}, None)
    rollouts, batch, grading = graded
    asked = ask_slow(
        rollouts=rollouts,
        batch=batch,
        grading=grading,
        pending=Artifact.at(run.root, state.pending_grades) if state.pending_grades else None,
        config=graders.asking(run.iteration),
        seed=derive_seed(config.seed, run.iteration, "ask"),
        step=ASK,
    )
    rewards = grading
    if graders.slow:
        rewards = settle(
            rollouts=rollouts, batch=batch, grading=grading, asked=asked, late=[], config=graders, step="rewards"
        )
    arrived = sorted((int(iteration) for iteration in asked.manifest.facts["arrived"]), reverse=True)
    late = {str(run.iteration - each): _take_up(each, asked, config, run) for each in arrived}
    return Settled(rewards, late, asked.id if asked.metrics["pending"] else None)


def _take_up(iteration: int, asked: Artifact, config: RunConfig, run: RunContext) -> Artifact:
    """The trajectories of an earlier iteration whose grades came: over its own rollouts, less what has trained.

    Its rewards are made by the graders that it had: one that was added since has no grade of them.
    """
    campaign, age = Campaign(run.root, config.campaign), run.iteration - iteration
    steps = campaign.state(iteration).steps
    between = {k: campaign.state(k).steps for k in range(iteration + 1, run.iteration)}
    rollouts = Artifact.at(run.root, steps["rollouts"])
    rewards = settle(
        rollouts=rollouts,
        batch=Artifact.at(run.root, steps["select"]),
        grading=Artifact.at(run.root, steps["grading"]),
        asked=Artifact.at(run.root, steps[ASK]),
        late=[*(Artifact.at(run.root, each[ASK]) for each in between.values() if ASK in each), asked],
        config=GradingConfig.model_validate(Artifact.at(run.root, steps["rewards"]).manifest.config),
        step=f"{LATE_REWARDS}-{age}",
    )
    before = [f"{LATE_FILTERING}-{k - iteration}" for k in between]
    names = [
        steps["filtering"],
        *(each[name] for name, each in zip(before, between.values(), strict=True) if name in each),
    ]
    return filter_rollouts(
        rollouts=rollouts,
        rewards=rewards,
        config=config.filtering,
        trained=[Artifact.at(run.root, name) for name in names],
        step=f"{LATE_FILTERING}-{age}",
    )
