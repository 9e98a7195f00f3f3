"""The strategies, pure: from what is known of every prompt of the pool to how much each is wanted.

Each takes the pool, its own configuration and a seeded generator, and gives one number per prompt: the higher ones are
drawn first, equal ones in a seeded shuffle. Drawing the highest `log w + Gumbel` is drawing without replacement with
probabilities proportional to w (Efraimidis & Spirakis 2006; arXiv 1903.06059, section 2.3).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from tasks._maths.posteriors import Beta, keep_probability
from tasks.select.strategy_config import BandConfig, GresoConfig, ThompsonConfig, UniformConfig, VarianceConfig

# So few of a prompt's discounted outcomes are successes that it counts as failed.
FAILED_SHARE = 0.05


class Rates(NamedTuple):
    """GRESO's p, for prompts that all rollouts pass and for those that all fail."""

    easy: float
    hard: float


class Known(NamedTuple):
    """What is known of the pool's prompts, sorted by their ids."""

    times_drawn: Int[np.ndarray, " prompts"]
    last_iteration: Int[np.ndarray, " prompts"]
    observed: Bool[np.ndarray, " prompts"]
    posterior: Beta
    prior: tuple[float, float]
    reward_variance: Float[np.ndarray, " prompts"]
    easy_streak: Int[np.ndarray, " prompts"]
    hard_streak: Int[np.ndarray, " prompts"]
    rates: Rates

    @property
    def failed(self) -> Bool[np.ndarray, " prompts"]:
        """Prompts whose rollouts so far (almost) all failed."""
        successes = self.posterior.alpha - self.prior[0]
        failures = self.posterior.beta - self.prior[1]
        return self.observed & (successes <= FAILED_SHARE * (successes + failures))


Wanted = Float[np.ndarray, " prompts"]


def uniform(known: Known, _config: UniformConfig, _random: np.random.Generator) -> Wanted:
    """The least drawn first: a whole cycle through the pool before any prompt comes again."""
    return -known.times_drawn.astype(np.float64)


def thompson(known: Known, config: ThompsonConfig, random: np.random.Generator) -> Wanted:
    """Minus the distance of a pass rate, drawn from the posterior, to the target or the band."""
    rate = random.beta(known.posterior.alpha, known.posterior.beta)
    low, high = config.band or (config.target, config.target)
    return -_distance(rate, low, high)


def variance(known: Known, config: VarianceConfig, random: np.random.Generator) -> Wanted:
    """Probability proportional to p(1-p) at the expected pass rate, or to the running variance of the reward.

    A prompt without rewards so far counts as the mean of those with some.
    """
    if config.of == "reward":
        seen = known.reward_variance[~np.isnan(known.reward_variance)]
        unseen = seen.mean() if len(seen) and seen.any() else 1.0
        weights = np.nan_to_num(known.reward_variance, nan=unseen)
    else:
        weights = known.posterior.mean * (1 - known.posterior.mean)
    return _in_proportion(weights, random)


def band(known: Known, config: BandConfig, _random: np.random.Generator) -> Wanted:
    """Minus the distance of the expected pass rate to the band: within it all are equal."""
    return -_distance(known.posterior.mean, config.low, config.high)


def greso(known: Known, config: GresoConfig, random: np.random.Generator) -> Wanted:
    """Probability proportional to max(p^z, least).

    That is walking through the shuffled pool and skipping each prompt with 1 - max(p^z, least) until enough are taken.
    """
    easy = keep_probability(known.easy_streak, known.rates.easy, config.least)
    hard = keep_probability(known.hard_streak, known.rates.hard, config.least)
    return _in_proportion(np.minimum(easy, hard), random)


STRATEGIES: dict[str, Callable[[Known, Any, np.random.Generator], Wanted]] = {
    "uniform": uniform,
    "thompson": thompson,
    "variance": variance,
    "band": band,
    "greso": greso,
}


def _distance(rate: Wanted, low: float, high: float) -> Wanted:
    return np.maximum(np.maximum(low - rate, rate - high), 0.0)


def _in_proportion(weights: Wanted, random: np.random.Generator) -> Wanted:
    with np.errstate(divide="ignore"):
        return np.log(weights) + random.gumbel(size=len(weights))
