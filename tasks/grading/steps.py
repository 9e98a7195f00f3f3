"""The steps of a composite: a table of pure functions on columns, one value a rollout.

A step sees rollouts that have every score that it needs; those of one domain. The runner notes what each step added.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from tasks._maths.advantages import group_mean_std, soft_overlong, whiten
from tasks._maths.lengths import length_penalty, without_length
from tasks.grading.composite_config import (
    Clip,
    Gate,
    LengthControl,
    LengthPenalty,
    Normalise,
    Phases,
    SoftOverlong,
    Threshold,
)

Rows = Float[np.ndarray, " rows"]


@dataclass(frozen=True)
class Scored:
    """Rollouts with all of their scores: a column per grader, in the graders' order.

    `passed` holds each grader's verdict (false where it has none), `judges` the labels of those that are judges.
    """

    scores: Mapping[str, Rows]
    weights: Mapping[str, float]
    passed: Mapping[str, Bool[np.ndarray, " rows"]]
    judges: Sequence[str]
    groups: Int[np.ndarray, " rows"]
    tokens: Int[np.ndarray, " rows"]


@dataclass
class Combined:
    """The reward, and what each step added to a score (`grader/step`) or to the reward (`step`)."""

    reward: Rows
    terms: dict[str, Rows] = field(default_factory=dict)


def normalise(values: Rows, scored: Scored, step: Normalise) -> Rows:
    """In the group or over the batch; 0 where nothing varies."""
    return group_mean_std(values, scored.groups) if step.scope == "group" else whiten(values)


def clip(values: Rows, scored: Scored, step: Clip) -> Rows:  # noqa: ARG001 one signature for all
    """Between the bounds."""
    return np.clip(values, step.low, step.high)


def threshold(values: Rows, scored: Scored, step: Threshold) -> Rows:  # noqa: ARG001
    """0 below `at`."""
    return np.where(values >= step.at, 1.0 if step.binary else values, 0.0)


def gate(values: Rows, scored: Scored, step: Gate) -> Rows:
    """The stated reward where one of the judges fails."""
    passed = np.ones(len(values), dtype=bool)
    for name in step.graders or scored.judges:
        passed &= scored.passed[name] if step.at_least is None else scored.scores[name] >= step.at_least
    return np.where(passed, values, step.otherwise)


def overlong(values: Rows, scored: Scored, step: SoftOverlong) -> Rows:
    """Less DAPO's soft punishment."""
    return values + step.weight * soft_overlong(scored.tokens, step.max_tokens, step.buffer_tokens)


def per_token(values: Rows, scored: Scored, step: LengthPenalty) -> Rows:
    """Less a price per token."""
    return values + length_penalty(scored.tokens, step.per_token, step.free_tokens)


def control_length(values: Rows, scored: Scored, step: LengthControl) -> Rows:
    """Less what length explains."""
    return without_length(values, scored.tokens, scored.groups, feature=step.feature, within=step.within)


# What a step makes of values: a grader's scores before the combination, the reward after it.
STEPS: dict[str, Callable[[Rows, Scored, Any], Rows]] = {
    "normalise": normalise,
    "clip": clip,
    "threshold": threshold,
    "gate": gate,
    "soft_overlong": overlong,
    "length_penalty": per_token,
    "length_control": control_length,
}


def weighted_sum(scores: Sequence[Rows], weights: Sequence[float]) -> Rows:
    """sum_i w_i s_i, added in the graders' order."""
    return sum((score * weight for score, weight in zip(scores, weights, strict=True)), np.zeros(len(scores[0])))


def weighted_mean(scores: Sequence[Rows], weights: Sequence[float]) -> Rows:
    """sum_i (w_i / sum w) s_i."""
    total = sum(weights)
    return weighted_sum(scores, [weight / total for weight in weights])


def product(scores: Sequence[Rows], weights: Sequence[float]) -> Rows:
    """prod_i s_i ^ (w_i / sum w)."""
    total = sum(weights)
    powers = [score ** (weight / total) for score, weight in zip(scores, weights, strict=True)]
    return np.prod(powers, axis=0)


COMBINATIONS: dict[str, Callable[[Sequence[Rows], Sequence[float]], Rows]] = {
    "weighted_mean": weighted_mean,
    "weighted_sum": weighted_sum,
    "product": product,
}


def run_steps(scored: Scored, steps: Phases) -> Combined:
    """The reward of every rollout. A step that leaves all as it was still has its term, of zeros."""
    scores, terms = dict(scored.scores), {}
    for step in steps.components:
        for name in step.graders or list(scores):
            changed = STEPS[step.kind](scores[name], scored, step)
            terms[f"{name}/{step.label}"] = changed - scores[name]
            scores[name] = changed
    reward = COMBINATIONS[steps.combination.kind](list(scores.values()), [scored.weights[name] for name in scores])
    terms[steps.combination.label] = reward
    for last in steps.reward:
        changed = STEPS[last.kind](reward, scored, last)
        terms[last.label] = changed - reward
        reward = changed
    return Combined(reward, terms)
