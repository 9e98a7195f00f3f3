"""How many rollouts each prompt of the batch gets, pure. The total is always the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int

from tasks._maths.posteriors import Beta, informative_gains, samples_needed
from tasks.select.strategy_config import EvenConfig, InformativeConfig

Samples = Int[np.ndarray, " prompts"]


def even(posterior: Beta, budget: int, _config: EvenConfig) -> Samples:
    """The budget in equal parts; it is a multiple of the number of prompts."""
    prompts = len(posterior.alpha)
    return np.full(prompts, budget // prompts)


def informative(posterior: Beta, budget: int, config: InformativeConfig) -> Samples:
    """What each prompt needs to be informative with the chance `config.target`, scaled to the budget.

    Every rollout beyond `min_samples` goes where it adds most to the expected number of informative groups: first among
    the rollouts that the targets ask for, then among the others. As what one rollout more adds never grows, no other
    split within a tier has a higher expectation.
    """
    low, high, prompts = config.min_samples, config.max_samples, len(posterior.alpha)
    needed = np.clip(samples_needed(posterior.mean, config.target, high), low, high)
    gains = informative_gains(posterior, low, high)
    beyond = np.arange(low, high)[:, None] >= needed
    # Equal gains in the order of n, so that a prompt's rollouts are always taken from the first on.
    order = np.lexsort((-gains.ravel(), beyond.ravel()))[: budget - low * prompts]
    return low + np.bincount(order % prompts, minlength=prompts)


ALLOCATIONS: dict[str, Callable[[Beta, int, Any], Samples]] = {"even": even, "informative": informative}
