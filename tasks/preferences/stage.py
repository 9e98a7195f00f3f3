"""The stage `preferences`: graded groups -> pairs for the reward model."""

from storage.artifacts import Artifact, Outputs
from tasks._stage import StageContext, stage
from tasks.preferences.config import PreferencesConfig
from tasks.preferences.pairs import pair_metrics, pairs_of


@stage("preferences", version=1)
def collect_preferences(
    rollouts: Artifact,
    rewards: Artifact,
    batch: Artifact,
    config: PreferencesConfig,
    *,
    seed: int,
    context: StageContext,
) -> Outputs:
    """This iteration's pairs; none, when no group has two answers that far apart."""
    pairs = pairs_of(rollouts.scan("rollouts"), rewards.scan("rewards"), batch.scan("batch"), config, seed)
    metrics = pair_metrics(pairs)
    context.log.info("preferences: %d pairs, %d held out", metrics["pairs"], metrics["eval_pairs"])
    return Outputs(metrics=metrics, preferences=pairs)
