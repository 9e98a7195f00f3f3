"""Filter rules that weigh rollouts, against objectives that take no weights."""

from tasks.filtering.config import FilteringConfig
from tasks.policy_update.config import PolicyUpdateConfig

WEIGHING = ("redundant_in_group", "oversample")


def check_weights(update: PolicyUpdateConfig, filtering: FilteringConfig) -> None:
    """Raises `ValueError` where weights would be given and ignored."""
    named = [rule.kind for rule in filtering.rules if rule.kind in WEIGHING]
    if named and (update.on_pairs or update.objective == "kto"):
        raise ValueError(
            f"filtering.rules has {', '.join(named)}, which weighs rollouts, and policy_update.objective is "
            f"{update.objective}, which compares them without weights; take the rule out"
        )
