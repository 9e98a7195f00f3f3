"""A reward model's scores as grades, pure."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from storage.errors import InputError
from storage.records import Grade
from tasks._maths.ensembles import aggregate
from tasks._maths.lengths import without_end
from tasks._training.member_scores import MemberScores
from tasks.grading.config import EnsembleConfig, GraderConfig

SCORED_COLUMNS = ["rollout_id", "policy_id", "prompt_token_ids", "token_ids", "finish_reason"]
LARGEST_EXPONENT = 50.0
ABSOLUTE = "absolute"
Rows = Float[np.ndarray, " rows"]


@dataclass(frozen=True)
class Combined:
    """Each row's score, and its uncertainty in the same units; None where one member alone scored."""

    score: Rows
    uncertainty: Rows | None


def grades_from_scores(
    rollouts: pl.DataFrame,
    scores: MemberScores,
    *,
    grader: GraderConfig,
    version: str,
    latency_s: float,
    calibration: Mapping[str, Any] | None = None,
) -> pl.DataFrame:
    """The `Grade` frame of a reward model, in the order of the rollouts: what `combined` says of the finite ones.

    A score that is not finite leaves a failed row, and so does one in absolute units outside the grader's range.
    `latency_s` is that of one rollout.
    """
    finite = np.isfinite(scores.raw).all(axis=1, keepdims=True)
    stopped = (rollouts["finish_reason"].cast(pl.String) == "stop").to_numpy()
    lengths = without_end(rollouts["token_ids"].list.len().to_numpy(), stopped)
    known = MemberScores(np.where(finite, scores.raw, scores.mean), scores.mean, scores.std)
    found = combined(known, lengths, grader.ensemble or EnsembleConfig(), calibration)
    reasons = _reasons(scores, found, grader)
    ok = np.array([reason is None for reason in reasons], dtype=bool)
    columns = [
        pl.lit(grader.label).alias("grader"),
        pl.lit(version).alias("grader_version"),
        pl.Series("status", np.where(ok, "ok", "failed"), pl.String),
        _nullable("score", found.score, ok),
        pl.lit(None, pl.Boolean).alias("passed"),
        pl.lit(None, pl.Float64).alias("uncertainty")
        if found.uncertainty is None
        else _nullable("uncertainty", found.uncertainty, ok),
        pl.Series("detail", _details(scores, reasons), pl.String),
        pl.lit(latency_s, pl.Float64).alias("latency_s"),
        pl.lit(0.0, pl.Float64).alias("cost"),
    ]
    graded = rollouts.select("rollout_id", "policy_id").with_columns(columns)
    return graded.select(Grade.column_names()).cast({"status": Grade.create_empty().schema["status"]})


def combined(
    scores: MemberScores, lengths: Rows, ensemble: EnsembleConfig, calibration: Mapping[str, Any] | None
) -> Combined:
    """The members' aggregate, calibrated where there is a calibration, as a score in (0, 1).

    The score is sigmoid(x), x being in deviations from the mean of training answers, so that a weight means the same
    from one reward model to the next; or in nats of log-odds, where the calibration says so. Calibrated to people's
    absolute scores it is theirs, if `ensemble.absolute`; else the calibration takes the effect of length away only.
    `lengths` are in tokens, without the end. The members' deviation is carried over by the slope of all this.
    """
    reward, deviation = aggregate(scores.standardised, ensemble.how, ensemble.strength)
    score_of = _score_of(lengths, ensemble, calibration)
    score = score_of(reward)
    if scores.raw.shape[1] == 1:
        return Combined(score, None)
    return Combined(score, np.abs(score_of(reward + deviation) - score_of(reward - deviation)) / 2)


def _score_of(lengths: Rows, ensemble: EnsembleConfig, calibration: Mapping[str, Any] | None) -> Callable[[Rows], Rows]:
    scale = calibration.get("scale") if calibration is not None else None
    if ensemble.absolute and scale != ABSOLUTE:
        has = "no calibration" if calibration is None else f"a calibration in units {scale}"
        raise InputError(
            f"grading: ensemble.absolute asks for people's units, and the reward model has {has}; "
            "it needs a reward_check with absolute scores of people"
        )
    if calibration is None:
        return _sigmoid
    if scale != ABSOLUTE:
        return lambda reward: _sigmoid(_calibrated(calibration, reward, lengths))
    if ensemble.absolute:
        return lambda reward: _calibrated(calibration, reward, lengths)
    length_only = {**calibration, "map": {"kind": "identity"}}
    return lambda reward: _sigmoid(_calibrated(length_only, reward, lengths))


def _nullable(name: str, values: Rows, known: Bool[np.ndarray, " rows"]) -> pl.Series:
    return pl.Series(name, np.where(known, values, np.nan), pl.Float64).fill_nan(None)


def _reasons(scores: MemberScores, found: Combined, grader: GraderConfig) -> list[str | None]:
    """Why a row has no score; None where it has one."""
    finite = np.isfinite(scores.raw).all(axis=1)
    absolute = grader.ensemble is not None and grader.ensemble.absolute
    low, high = grader.score_range if absolute and grader.score_range else (-np.inf, np.inf)
    fits = (found.score >= low) & (found.score <= high)
    reasons: list[str | None] = [None] * len(finite)
    for row in np.flatnonzero(~(finite & fits)).tolist():
        raw = ", ".join(str(value) for value in scores.raw[row])
        outside = f"the reward model's score {found.score[row]:.4g} lies outside score_range {low:g} to {high:g}"
        reasons[row] = outside if finite[row] else f"the reward model's score is {raw}"
    return reasons


def _details(scores: MemberScores, reasons: list[str | None]) -> list[str]:
    """A single member's raw score; of several their standardised ones; of a failed row why."""
    if scores.raw.shape[1] == 1:
        said = [{"raw": float(value)} for value in scores.raw[:, 0]]
    else:
        said = [{"members": row} for row in scores.standardised.round(4).tolist()]
    return [
        json.dumps(known if reason is None else {"error": reason}) for known, reason in zip(said, reasons, strict=True)
    ]


def _sigmoid(values: Rows) -> Rows:
    return 1 / (1 + np.exp(-np.clip(values, -LARGEST_EXPONENT, LARGEST_EXPONENT)))


def _calibrated(calibration: Mapping[str, Any], rewards: Rows, lengths: Rows) -> Rows:
    from tasks._maths.calibration import apply  # loads scipy

    return apply(calibration, rewards, lengths)
