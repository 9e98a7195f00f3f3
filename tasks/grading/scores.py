"""A reward model's scores as grades, pure."""

import json

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from storage.records import Grade
from tasks._training.heads import Scores
from tasks.grading.config import GraderConfig

SCORED_COLUMNS = ["rollout_id", "policy_id", "prompt_token_ids", "token_ids"]
LARGEST_EXPONENT = 50.0


def grades_from_scores(
    rollouts: pl.DataFrame, scores: Scores, *, grader: GraderConfig, version: str, latency_s: float
) -> pl.DataFrame:
    """The `Grade` frame of a reward model: sigmoid((raw - mean) / std), in (0, 1), in the order of the rollouts.

    Mean and deviation are those of training answers, so that a weight means the same from one reward model to the
    next. A score that is not finite leaves a failed row. `latency_s` is that of one rollout.
    """
    finite = np.isfinite(scores.raw)
    squashed = _sigmoid(np.where(finite, scores.standardised, 0.0))
    columns = [
        pl.lit(grader.label).alias("grader"),
        pl.lit(version).alias("grader_version"),
        pl.Series("status", np.where(finite, "ok", "failed"), pl.String),
        pl.Series("score", np.where(finite, squashed, np.nan), pl.Float64).fill_nan(None),
        pl.lit(None, pl.Boolean).alias("passed"),
        pl.lit(None, pl.Float64).alias("uncertainty"),
        pl.Series("detail", _details(scores.raw, finite), pl.String),
        pl.lit(latency_s, pl.Float64).alias("latency_s"),
        pl.lit(0.0, pl.Float64).alias("cost"),
    ]
    graded = rollouts.select("rollout_id", "policy_id").with_columns(columns)
    return graded.select(Grade.column_names()).cast({"status": Grade.create_empty().schema["status"]})


def _details(raw: Float[np.ndarray, " rows"], finite: Bool[np.ndarray, " rows"]) -> list[str]:
    return [
        json.dumps({"raw": float(value)} if ok else {"error": f"the reward model's score is {value}"})
        for value, ok in zip(raw, finite, strict=True)
    ]


def _sigmoid(values: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    return 1 / (1 + np.exp(-np.clip(values, -LARGEST_EXPONENT, LARGEST_EXPONENT)))
