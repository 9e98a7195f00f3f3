"""Whether what makes a reward model takes what the run file says of it."""

from tasks.frozen_heads.config import FrozenHeadsConfig
from tasks.pair_quality.config import PairQualityConfig
from tasks.preferences.config import PreferencesConfig
from tasks.reward_gate.config import RewardGateConfig
from tasks.reward_model.config import RewardModelConfig

# What of `reward_model` counts for heads over frozen states too: when they are fitted, and to which pairs.
TAKEN_BY_HEADS = {"enabled", "when", "train_every", "trigger", "watch", "sources", "min_pairs"} | {
    "max_pairs",
    "max_heldout_pairs",
}


def check_reward_model(
    config: RewardModelConfig, frozen_heads: FrozenHeadsConfig | None, pair_quality: PairQualityConfig | None
) -> None:
    """Raises `ValueError` for an option that would be ignored, or that training would refuse at the end of a night."""
    if frozen_heads is not None:
        _refuse_ignored(config)
    elif pair_quality is not None and pair_quality.margins and config.loss != "bradley_terry":
        raise ValueError(
            f"pair_quality.margins: reward_model.loss {config.loss} knows no margin; set margins: false, or loss: "
            "bradley_terry"
        )


def gate_warnings(config: RewardModelConfig, gate: RewardGateConfig, preferences: PreferencesConfig) -> list[str]:
    """A gate that nothing can pass."""
    if not (config.enabled and gate.enabled) or preferences.eval_fraction:
        return []
    kept_out = "no reward model" if gate.first == "above_chance" else "no reward model but the first"
    return [
        f"preferences.eval_fraction is 0: no pair is held out, so reward_gate lets {kept_out} grade; raise it, or set "
        "reward_gate.enabled to false"
    ]


def _refuse_ignored(config: RewardModelConfig) -> None:
    if config.base == "policy":
        raise ValueError(
            "frozen_heads read the base model's states, and reward_model.base is policy; leave it out, or train "
            "without frozen_heads"
        )
    ignored = [
        name
        for name, field in RewardModelConfig.model_fields.items()
        if name not in TAKEN_BY_HEADS and not _says_how(field.json_schema_extra) and _changed(config, name)
    ]
    if ignored:
        raise ValueError(
            f"frozen_heads are fitted, not trained: reward_model.{', reward_model.'.join(ignored)} would be ignored; "
            "leave it out (frozen_heads has options of its own), or train without frozen_heads"
        )


def _changed(config: RewardModelConfig, name: str) -> bool:
    return bool(getattr(config, name) != RewardModelConfig.model_fields[name].get_default(call_default_factory=True))


def _says_how(extra: object) -> bool:
    """Device and memory change how, not what: heads have theirs in `states`."""
    return isinstance(extra, dict) and extra.get("fingerprint") is False
