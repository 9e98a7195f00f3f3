"""What past outcomes say of a prompt: a Beta posterior of its pass rate, the moments of its reward, and the chance
that a group of its rollouts is informative (some pass, some fail).

Arrays hold one entry per prompt. Outcomes are successes in [0, 1], so soft ones count in part.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Rates = Float[np.ndarray, " prompts"]
Counts = Int[np.ndarray, " prompts"]


class Beta(NamedTuple):
    """Beta distributions of pass rates."""

    alpha: Rates
    beta: Rates

    @property
    def mean(self) -> Rates:
        """The expected pass rate."""
        return self.alpha / (self.alpha + self.beta)


class Moments(NamedTuple):
    """Mean and variance of a reward, and the discounted number of rewards that they are made of."""

    weight: Rates
    mean: Rates
    variance: Rates


def update_beta(posterior: Beta, successes: Rates, samples: Rates, prior: tuple[float, float], discount: float) -> Beta:
    """The posteriors after `successes` of `samples`: a <- d a + (1 - d) a0 + s, b <- d b + (1 - d) b0 + (n - s).

    MoPPS (arXiv 2507.04632; recipe/ours/mopps.py of its code): what is old counts `discount` as much with every
    update, and the prior takes its place. 1 never forgets.
    """
    alpha = discount * posterior.alpha + (1 - discount) * prior[0] + successes
    beta = discount * posterior.beta + (1 - discount) * prior[1] + (samples - successes)
    return Beta(alpha, beta)


def relax(posterior: Beta, prior: tuple[float, float], kept: Rates) -> Beta:
    """The posteriors with the share `kept` of their evidence: 1 leaves them, 0 gives the prior."""
    return Beta(prior[0] + (posterior.alpha - prior[0]) * kept, prior[1] + (posterior.beta - prior[1]) * kept)


def update_moments(before: Moments, samples: Rates, mean: Rates, variance: Rates, discount: float) -> Moments:
    """The moments with `samples` more rewards, those before counted `discount` as much.

    Pooled exactly (Chan, Golub & LeVeque 1983, equation 2.1 with weights): the result is the mean and the variance of
    all rewards under their weights. Nothing before is a weight of 0, whatever its mean and variance.
    """
    old = np.where(before.weight > 0, discount * before.weight, 0.0)
    before_mean = np.where(old > 0, before.mean, mean)
    before_variance = np.where(old > 0, before.variance, 0.0)
    weight = old + samples
    pooled = (old * before_mean + samples * mean) / weight
    spread = old * (before_variance + (before_mean - pooled) ** 2) + samples * (variance + (mean - pooled) ** 2)
    return Moments(weight, pooled, spread / weight)


def informative(pass_rate: Rates | float, samples: Counts | int) -> Rates:
    """1 - p^n - (1-p)^n: the chance that n rollouts neither all pass nor all fail."""
    rate = np.asarray(pass_rate, dtype=np.float64)
    return 1 - rate**samples - (1 - rate) ** samples


def samples_needed(pass_rate: Rates, target: float, most: int) -> Counts:
    """The smallest number of rollouts whose chance to be informative reaches `target`; `most` where none does."""
    needed = np.full(len(pass_rate), most)
    for samples in range(most - 1, 1, -1):
        needed[informative(pass_rate, samples) >= target] = samples
    return needed


def expected_informative(posterior: Beta, samples: Counts) -> Rates:
    """The chance to be informative over the whole posterior, 1 - E[p^n] - E[(1-p)^n].

    E[p^n] of Beta(a, b) is the product of (a + i) / (a + b + i) over i < n.
    """
    total = posterior.alpha + posterior.beta
    all_pass, all_fail = np.ones(len(total)), np.ones(len(total))
    for i in range(int(samples.max(initial=0))):
        more = i < samples
        all_pass = np.where(more, all_pass * (posterior.alpha + i) / (total + i), all_pass)
        all_fail = np.where(more, all_fail * (posterior.beta + i) / (total + i), all_fail)
    return 1 - all_pass - all_fail


def informative_gains(posterior: Beta, first: int, stop: int) -> Float[np.ndarray, "samples prompts"]:
    """What one rollout more adds to `expected_informative`: from n to n + 1, for n from `first` below `stop`.

    E[p^n (1-p)] + E[p (1-p)^n], which never grows with n: what is greedy by it is optimal.
    """
    total = posterior.alpha + posterior.beta
    first_failure, first_success = posterior.beta / total, posterior.alpha / total
    gains = []
    for n in range(stop):
        if n >= first:
            gains.append(first_failure + first_success)
        first_failure = first_failure * ((posterior.alpha + n) / (total + n + 1))
        first_success = first_success * ((posterior.beta + n) / (total + n + 1))
    return np.array(gains).reshape(stop - first, len(total))


def keep_probability(streak: Counts, rate: float, least: float) -> Rates:
    """max(p^z, least): the chance that a prompt is not skipped after z groups without variance in a row.

    GRESO (arXiv 2506.02177): it skips with probability 1 - max(p^z, 0.01).
    """
    return np.maximum(rate ** streak.astype(np.float64), least)


def adapt_rate(rate: float, share: float, target: float, step: float, low: float, high: float) -> float:
    """GRESO's p one step toward the target: less, so that more is skipped, where groups without variance are too many.

    `share` and `target` are shares of all groups that were sampled.
    """
    moved = rate - step if share >= target else rate + step
    return min(max(moved, low), high)
