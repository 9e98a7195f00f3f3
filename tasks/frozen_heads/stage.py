"""The stage `frozen_heads`: preferences and their stored states -> a reward model of kind frozen."""

from storage.artifacts import Artifact, Outputs
from tasks._stage import StageContext, stage
from tasks.frozen_heads.config import FrozenHeadsConfig

PICTURE = "learning_curve.png"


@stage("frozen_heads", version=1)
def fit_frozen(
    preferences: Artifact,
    states: Artifact,
    quality: Artifact | None,
    config: FrozenHeadsConfig,
    *,
    seed: int,
    context: StageContext,
) -> Outputs:
    """Heads, how often they agree with pairs that they never saw, and whether more pairs would help.

    `preferences` are those that the states were read of; `quality` is their pair_quality, which flips, drops and
    smooths training pairs.
    """
    from tasks._training.frozen import save_frozen
    from tasks._training.states import StatesSpec
    from tasks._training.stored_pairs import read_stored
    from tasks.frozen_heads.fitting import fit_heads
    from tasks.frozen_heads.picture import draw_curve

    stored = read_stored(preferences, states, smoothing=config.smoothing)
    fitted = fit_heads(stored, config, seed=seed, quality=quality.read("pair_quality") if quality else None)
    facts = states.manifest.facts
    files = save_frozen(fitted.heads, StatesSpec.from_json(facts["states"]), context.scratch / "reward_model")
    if fitted.curve is not None:
        files.append(draw_curve(fitted.learning_curve, fitted.curve, context.scratch / PICTURE))
        context.log.info("learning curve: %s", fitted.curve.verdict)
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in sorted(fitted.metrics.items()))
    context.log.info("frozen heads fitted: %s", metrics)
    return Outputs(
        files={path.name: path for path in files},
        facts={"base": facts["base"]},
        metrics=fitted.metrics,
        scored_pairs=fitted.scored_pairs,
        cross_validation=fitted.cross_validation,
        learning_curve=fitted.learning_curve,
    )
