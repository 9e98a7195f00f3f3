"""The strategies, pure: from what is known of every candidate pair to how much its label is wanted.

Each gives one number per pair: the higher ones come first, equal ones in a seeded shuffle, NaN never.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr

from tasks._maths.disagreement import REASONS

Pairs = Float[np.ndarray, " pairs"]


class Candidates(NamedTuple):
    """What is known of the pairs; NaN where something isn't."""

    first_score: Pairs
    second_score: Pairs
    first_uncertainty: Pairs
    second_uncertainty: Pairs
    spread: float
    """Standard deviation of all scores: what a difference is compared with where no uncertainty is known."""
    margins: Float[np.ndarray, "pairs graders"]
    """First minus second of every grader, over the standard deviation of that grader's scores."""
    drawn: Pairs
    """Uniform in [0, 1), seeded."""
    gaps: Mapping[str, Pairs] = MappingProxyType({})
    """Of pairs of earlier iterations, of which nothing else is known: by strategy how far people and the grader are
    apart on one of the answers, in standard deviations."""


def difference_uncertainty(pairs: Candidates) -> Pairs:
    """Standard deviation of the difference of the two scores, their errors taken as independent."""
    return np.hypot(pairs.first_uncertainty, pairs.second_uncertainty)


def uncertain(pairs: Candidates) -> Pairs:
    """The probability that the lower score belongs to the better answer: Phi(-|difference| / its uncertainty).

    0.5 where the two can't be told apart. Without uncertainties the spread of all scores stands for it, so that the
    narrowest differences come first.
    """
    scale = difference_uncertainty(pairs)
    scale = np.where(np.isnan(scale), pairs.spread * np.sqrt(2), scale)
    gap = np.abs(pairs.first_score - pairs.second_score)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(gap == 0, 0.0, gap / scale)
    return ndtr(-ratio)


def high_uncertainty(pairs: Candidates) -> Pairs:
    """The smaller of the two uncertainties: both answers are unlike what the reward model knows."""
    return np.minimum(pairs.first_uncertainty, pairs.second_uncertainty)


def disagreement(pairs: Candidates) -> Pairs:
    """How far two graders contradict each other on which answer is better: the weaker of the two verdicts.

    min(largest margin for the first, largest margin for the second), in standard deviations of a grader's scores.
    """
    if pairs.margins.shape[1] < 2:
        return np.full(len(pairs.drawn), np.nan)
    margins = np.nan_to_num(pairs.margins, nan=0.0)
    weaker = np.minimum(margins.max(axis=1), -margins.min(axis=1))
    return np.where(weaker > 0, weaker, np.nan)


def audit(pairs: Candidates) -> Pairs:
    """At random: what tells how people see all pairs, not just the doubtful ones."""
    return pairs.drawn


def contradiction(name: str, pairs: Candidates) -> Pairs:
    """The pairs of an answer whose score people contradict, the largest difference first."""
    return pairs.gaps.get(name, np.full(len(pairs.drawn), np.nan))


STRATEGIES: dict[str, Callable[[Candidates], Pairs]] = {
    "uncertain": uncertain,
    "high_uncertainty": high_uncertainty,
    "disagreement": disagreement,
    "random": audit,
    **{name: partial(contradiction, name) for name in REASONS},
}
