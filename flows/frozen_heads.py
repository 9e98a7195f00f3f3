"""The cheap reward model in a flow: frozen states of the pairs, the quality of their labels, heads."""

from flows.config import RunConfig
from storage.artifacts import Artifact
from storage.fingerprints import derive_seed
from storage.policies import base_of
from tasks.frozen_heads.stage import fit_frozen
from tasks.pair_quality.stage import judge_quality
from tasks.reward_model.stage import train
from tasks.states.config import DrawnStatesConfig
from tasks.states.stage import read_answers


def drawn_states(config: RunConfig) -> DrawnStatesConfig:
    """The states of the run file, of those pairs that its reward model is made of."""
    asked = config.reward_model
    return DrawnStatesConfig(
        **config.states.model_dump(),
        sources=asked.sources,
        max_pairs=asked.max_pairs,
        max_heldout_pairs=asked.max_heldout_pairs,
    )


def make_reward_model(pairs: Artifact, base: Artifact, config: RunConfig, *, seed: int) -> Artifact:
    """Fits heads over frozen states where the run file has `frozen_heads`, else trains by gradient.

    With `pair_quality` either is told which labels are likely wrong.
    """
    quality = states = None
    if config.frozen_heads is not None or config.pair_quality is not None:
        states = read_answers(preferences=pairs, base=base_of(base), config=drawn_states(config), seed=seed)
    if states is not None and config.pair_quality is not None:
        quality = judge_quality(
            preferences=pairs, states=states, config=config.pair_quality, seed=derive_seed(seed, "quality")
        )
    if states is not None and config.frozen_heads is not None:
        return fit_frozen(
            preferences=pairs,
            states=states,
            quality=quality,
            config=config.frozen_heads,
            seed=seed,
            step="reward_model",
        )
    return train(preferences=pairs, base=base, pair_quality=quality, config=config.reward_model, seed=seed)
