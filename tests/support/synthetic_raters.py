"""Raters with a known utility, noise and length bias, and linear Bradley-Terry heads fitted to their choices."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from storage.records import RECORDS

SCHEMA = RECORDS["preferences"].create_empty().schema
DIMENSIONS = 12
OFFSET, SCALE, SCORE_NOISE = 5.0, 2.0, 0.3
RIDGE = 1.0


@dataclass(frozen=True)
class World:
    """Pairs of answers: features (the last one is the standardised log length), utility, length in tokens, people's
    absolute scores 5 + 2 u with a little noise, and which of the two was chosen (0 or 1).
    """

    features: np.ndarray
    utility: np.ndarray
    length: np.ndarray
    score: np.ndarray
    choice: np.ndarray

    def chosen_first(self, values: np.ndarray) -> np.ndarray:
        """Values of shape (pairs, 2, ...) with the chosen answer first."""
        rows = np.arange(len(self.choice))
        return np.stack([values[rows, self.choice], values[rows, 1 - self.choice]], axis=1)


def world(
    pairs: int, *, seed: int, sharpness: float = 4.0, length_bias: float = 0.0, flipped: float = 0.0, tied: float = 0.3
) -> World:
    """Choices with logit sharpness (u_a - u_b) + length_bias (z_a - z_b), a share of them flipped.

    Utility has deviation 1 and correlates with the log length z by `tied`, as good answers are longer in truth.
    """
    random = np.random.default_rng(seed)
    weights = np.random.default_rng(99).normal(size=DIMENSIONS)
    # Utility is seen in the features, the length's own among them.
    hidden = random.normal(size=(pairs, 2, DIMENSIONS))
    own = hidden @ (weights / np.linalg.norm(weights))
    z = random.normal(size=(pairs, 2))
    utility = np.sqrt(1 - tied**2) * own + tied * z
    length = np.round(np.exp(4 + 0.5 * z))
    logit = sharpness * (utility[:, 0] - utility[:, 1]) + length_bias * (z[:, 0] - z[:, 1])
    choice = (random.random(pairs) > 1 / (1 + np.exp(np.clip(-logit, -500, 500)))).astype(np.int64)
    choice = np.where(random.random(pairs) < flipped, 1 - choice, choice)
    score = OFFSET + SCALE * utility + SCORE_NOISE * random.normal(size=(pairs, 2))
    return World(np.concatenate([hidden, z[..., None]], axis=2), utility, length, score, choice)


def fit_heads(given: World, members: int, *, seed: int = 0) -> np.ndarray:
    """Linear Bradley-Terry heads (features, members), each on a bootstrap of the pairs, by Newton with a ridge."""
    random = np.random.default_rng(seed)
    ordered = given.chosen_first(given.features)
    difference = ordered[:, 0] - ordered[:, 1]
    return np.stack(
        [
            _fit(difference, random.multinomial(len(difference), [1 / len(difference)] * len(difference)))
            for _ in range(members)
        ],
        axis=1,
    )


def _fit(difference: np.ndarray, counts: np.ndarray) -> np.ndarray:
    weights = np.zeros(difference.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-difference @ weights))
        gradient = difference.T @ (counts * (1 - p)) - RIDGE * weights
        curvature = (difference * (counts * p * (1 - p))[:, None]).T @ difference + RIDGE * np.eye(len(weights))
        weights += np.linalg.solve(curvature, gradient)
    return weights


def preference_rows(given: World, *, scored: bool = True, prefix: str = "p") -> pl.DataFrame:
    """The pairs as `Preference` rows of split `eval`, a prompt each; domains alternate in the prompt's id."""
    score = given.chosen_first(given.score)
    rows = [
        {
            "pair_id": f"{prefix}{index:05d}",
            "prompt_id": f"q{index:05d}",
            "cluster_id": f"c{index:05d}",
            "messages": [{"role": "user", "content": f"question {index}"}],
            "chosen": f"answer {index} a",
            "rejected": f"answer {index} b",
            "source": "human",
            "annotator": "ann" if index % 2 else "ben",
            "human_score_chosen": float(score[index, 0]) if scored else None,
            "human_score_rejected": float(score[index, 1]) if scored else None,
            "split": "eval",
        }
        for index in range(len(score))
    ]
    return pl.DataFrame(rows, schema=SCHEMA)
