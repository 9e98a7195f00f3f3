"""The stage `pair_quality`: preferences and their stored states -> how far each label is to be trusted."""

from storage.artifacts import Artifact, Outputs
from tasks._stage import StageContext, stage
from tasks.pair_quality.config import PairQualityConfig


@stage("pair_quality", version=1)
def judge_quality(
    preferences: Artifact, states: Artifact, config: PairQualityConfig, *, seed: int, context: StageContext
) -> Outputs:
    """Only training pairs are judged: held-out ones stay as they are. A training reads the table `pair_quality`."""
    from tasks._training.stored_pairs import read_stored
    from tasks.pair_quality.quality import judge_pairs

    judged = judge_pairs(read_stored(preferences, states), config, seed=seed)
    context.log.info("pair quality: %s", ", ".join(f"{name} {value:.4g}" for name, value in judged.metrics.items()))
    return Outputs(metrics=judged.metrics, pair_quality=judged.quality, strength_deciles=judged.deciles)
