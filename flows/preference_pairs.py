"""The pairs of an iteration: those of files first, then all origins together."""

from collections.abc import Sequence

from flows.config import RunConfig
from flows.slow_grades import Graded
from flows.steps import FIRST
from storage.artifacts import Artifact
from storage.campaigns import Campaign
from storage.fingerprints import derive_seed
from tasks._stage import RunContext
from tasks.preferences.stage import collect_preferences, import_pairs


def gather_pairs(
    config: RunConfig,
    run: RunContext,
    graded: Graded,
    labels: Sequence[Artifact] = (),
    anchors: Artifact | None = None,
) -> Artifact:
    """Reads the run file's sources of pairs (found where nothing changed), then makes this iteration's pairs.

    `graded.grading` holds the rewards; `labels` what people said so far; nothing trains on `anchors`.
    """
    seed = derive_seed(config.seed, "preferences")
    files = config.preferences.files
    return collect_preferences(
        rollouts=graded.rollouts,
        rewards=graded.grading,
        batch=graded.batch,
        imported=import_pairs(config=files, seed=seed) if files is not None else None,
        labels=list(labels),
        history=_earlier(config, run),
        anchors=anchors,
        config=config.preferences,
        seed=seed,
    )


def _earlier(config: RunConfig, run: RunContext) -> list[Artifact]:
    """The pairs of the last `history_iterations` before this one, the newest first."""
    wanted = config.preferences.history_iterations
    if not wanted:
        return []
    campaign = Campaign(run.root, config.campaign)
    earlier = [k for k in campaign.iterations() if FIRST < k < run.iteration][-wanted:]
    steps = [campaign.state(k).steps for k in reversed(earlier)]
    return [Artifact.at(run.root, each["preferences"]) for each in steps if "preferences" in each]
