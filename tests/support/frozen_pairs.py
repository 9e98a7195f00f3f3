"""Pairs whose better answer is known: random states, a utility that is linear in them, labels that may be wrong."""

import numpy as np

from tasks._maths.linear_preferences import Labels
from tasks._maths.paired_answers import PairedAnswers


def known_pairs(
    pairs: int = 400,
    features: int = 12,
    *,
    per_prompt: int = 2,
    noise: float = 0.0,
    sharpness: float = 3.0,
    of_prompt: float = 0.0,
    seed: int = 0,
) -> tuple[PairedAnswers, np.ndarray, np.ndarray]:
    """Pairs, which of their labels were turned round (a share of `noise`), and the utility's direction.

    Every pair has two answers of its own. `of_prompt` adds to the difference of a prompt's pairs what only that
    prompt has: it tells which answer is better there, and nothing elsewhere.
    """
    random = np.random.default_rng(seed)
    direction = random.normal(size=features) / features**0.5
    clusters = np.arange(pairs) // per_prompt
    states = random.normal(size=(2 * pairs, features))
    first, second = np.arange(pairs), np.arange(pairs) + pairs
    utility = sharpness * (states[first] - states[second]) @ direction
    swap = utility < 0
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    wrong = random.random(pairs) < noise
    first, second = np.where(wrong, second, first), np.where(wrong, first, second)
    if of_prompt:
        marks = random.normal(size=(clusters.max() + 1, features)) * of_prompt
        own = np.zeros((2 * pairs, features))
        own[first] += marks[clusters]
        states = np.concatenate([states, own], axis=1)
    return PairedAnswers(states, first, second, clusters, Labels.certain(pairs)), wrong, direction
