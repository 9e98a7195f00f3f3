"""Which labels of a preference set are likely wrong: Wang et al., "Secrets of RLHF in Large Language Models Part II"
(arXiv 2401.06080), section 3.

Of M models that never saw a pair, d_i = r_i(chosen) - r_i(rejected) is the strength that each gives it; u = mean(d_i)
is its strength and s = std(d_i) how much they differ. The weakest pairs, with u < 0, are likely labelled the wrong way
round: they are flipped, dropped or left; those in the middle are smoothed; the rest gets u as its margin.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

KEEP, FLIP, SMOOTH, DROP = "keep", "flip", "smooth", "drop"
Action = Literal["keep", "flip", "smooth", "drop"]
Pairs = Float[np.ndarray, " pairs"]


@dataclass(frozen=True)
class Rules:
    """What is done by strength: `lowest` to the weakest share where u < 0, `middle` to the rest of that share and
    to the share above it.

    `smoothing` is epsilon, the assumed chance that a smoothed label is wrong; with `margins` kept pairs get their
    strength as margin where it is above 0.
    """

    lowest_share: float
    lowest: Action
    middle_share: float
    middle: Action
    smoothing: float
    margins: bool


@dataclass(frozen=True)
class Quality:
    """Of each pair its strength u, the deviation s over models (with M), and what to do."""

    strength: Pairs
    deviation: Pairs
    decile: Int[np.ndarray, " pairs"]
    action: Shaped[np.ndarray, " pairs"]
    smoothing: Pairs
    margin: Pairs


def judge(margins: Float[np.ndarray, "pairs models"], rules: Rules) -> Quality:
    """The quality of pairs from out-of-fold score differences in units that are the same for all models.

    Deciles count from 1, the weakest tenth. Of the lowest share only pairs with u < 0 are acted on.
    """
    strength, deviation = margins.mean(axis=1), margins.std(axis=1)
    place = ranks(strength)
    lowest = (place < rules.lowest_share) & (strength < 0)
    middle = ~lowest & (place < rules.lowest_share + rules.middle_share)
    action = np.select([lowest, middle], [rules.lowest, rules.middle], KEEP)
    smoothing = np.where(action == SMOOTH, rules.smoothing, 0.0)
    stated = (action == KEEP) & (strength > 0) if rules.margins else np.zeros(len(strength), dtype=bool)
    return Quality(strength, deviation, deciles(strength), action, smoothing, np.where(stated, strength, 0.0))


def ranks(values: Pairs) -> Pairs:
    """The share of values below each one, in [0, 1); equal values in their order."""
    place = np.empty(len(values))
    place[np.argsort(values, kind="stable")] = np.arange(len(values))
    return place / max(len(values), 1)


def deciles(values: Pairs) -> Int[np.ndarray, " pairs"]:
    """The tenth of each value, from 1 for the smallest."""
    return np.floor(ranks(values) * 10).astype(np.int64) + 1
