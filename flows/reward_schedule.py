"""When a reward model is trained: what the run file asks for, in words, and the signs of drift. Pure and light."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tasks.reward_model.config import RewardModelConfig
from tasks.reward_model.refresh_config import TriggerConfig

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Signs:
    """Metrics of two checks of the reward model in charge: the one that it was promoted by, and this iteration's."""

    then: Metrics
    now: Metrics

    def values(self, then: str, *now: str) -> tuple[float, float] | None:
        """A metric of then and the first known of those of now; None where one lacks or isn't a number."""
        before = self.then.get(then)
        after = next((self.now[name] for name in now if name in self.now), None)
        if before is None or after is None or not (math.isfinite(before) and math.isfinite(after)):
            return None
        return before, after


def uncertainty_grew(signs: Signs, config: TriggerConfig) -> str | None:
    """The members disagree more on fresh rollouts than on those of then; old checks know of held-out pairs alone."""
    fresh = "fresh_uncertainty_mean"
    known = signs.values(fresh if fresh in signs.then else "uncertainty_mean", fresh)
    if known is None or not known[0] or known[1] <= config.uncertainty_ratio * known[0]:
        return None
    return (
        f"uncertainty of the rollouts is {known[1] / known[0]:.2f} times that of the check (limit "
        f"{config.uncertainty_ratio:g})"
    )


def gap_grew(signs: Signs, config: TriggerConfig) -> str | None:
    """The mean absolute gap to people's scores: of the calibration that grades, where the check measured that."""
    known = signs.values("gap_mae", "graded_gap_mae", "gap_mae")
    if known is None or not _enough(signs, config) or known[1] <= config.gap_ratio * known[0]:
        return None
    return f"the gap to people's scores went from {known[0]:.3f} to {known[1]:.3f} (limit {config.gap_ratio:g} times)"


def accuracy_fell(signs: Signs, config: TriggerConfig) -> str | None:
    """The accuracy on held-out pairs of the iteration's own rollouts surely fell: the upper end of its interval lies
    below the accuracy of then less the limit.
    """
    known = signs.values("fresh_accuracy", "fresh_accuracy_high")
    few = signs.now.get("fresh_pairs", 0.0) < config.min_pairs
    if known is None or few or known[1] >= known[0] - config.accuracy_drop:
        return None
    limit = f"limit {config.accuracy_drop:g}"
    return f"accuracy on fresh held-out pairs fell from {known[0]:.3f} to {known[1]:.3f} at most ({limit})"


TRIGGERS: tuple[Callable[[Signs, TriggerConfig], str | None], ...] = (uncertainty_grew, gap_grew, accuracy_fell)


def drift(signs: Signs, config: TriggerConfig) -> list[str]:
    """The signs of drift that are beyond their limits, in words (methods.md, section 3.6)."""
    return [found for trigger in TRIGGERS if (found := trigger(signs, config)) is not None]


def schedule(config: RewardModelConfig, iterations: Sequence[int], present: str | None) -> str:
    """In words when the next reward models are trained, of these iterations; `present` names the one in charge."""
    if not config.enabled:
        return "none"
    if config.when == "every":
        return ", ".join(str(k) for k in iterations if config.due(k)) or "none"
    if present is None:
        first = f"once, in the first iteration with {config.min_pairs} training pairs"
        return f"{first}, then {'frozen' if config.when == 'offline' else 'on signs of drift'}"
    return f"none: {present} is frozen" if config.when == "offline" else f"{present} until it shows signs of drift"


def _enough(signs: Signs, config: TriggerConfig) -> bool:
    return signs.now.get("pairs", 0.0) >= config.min_pairs
