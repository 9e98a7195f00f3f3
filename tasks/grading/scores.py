"""A reward model's scores as grades, pure."""

import json

import numpy as np
import polars as pl
from jaxtyping import Float

from storage.records import Grade
from tasks.grading.config import GraderConfig

MINIMUM_STD = 1e-6


def grades_from_scores(
    rollouts: pl.DataFrame,
    raw: Float[np.ndarray, " rows"],
    *,
    mean: float,
    std: float,
    grader: GraderConfig,
    version: str,
    latency_s: float,
) -> pl.DataFrame:
    """The `Grade` frame of raw reward-model scores: sigmoid((raw - mean) / std), in (0, 1).

    `mean` and `std` are those of the scores that the model was calibrated on, so that the composite's weights
    mean the same from iteration to iteration. A score that is not finite leaves a failed row. `latency_s` is that
    of one row.
    """
    finite = np.isfinite(raw)
    scaled = (raw - mean) / max(std, MINIMUM_STD)
    details = [
        json.dumps({"raw": float(value)} if ok else {"error": f"the score is {value}"})
        for value, ok in zip(raw, finite, strict=True)
    ]
    return rollouts.select(
        "rollout_id",
        pl.lit(grader.label).alias("grader"),
        pl.lit(version).alias("grader_version"),
        pl.Series("status", np.where(finite, "ok", "failed"), pl.String),
        pl.Series(
            "score",
            [float(value) if ok else None for value, ok in zip(_sigmoid(scaled), finite, strict=True)],
            pl.Float64,
        ),
        pl.lit(None, pl.Boolean).alias("passed"),
        pl.lit(None, pl.Float64).alias("uncertainty"),
        pl.Series("detail", details, pl.String),
        pl.lit(latency_s).alias("latency_s"),
        "policy_id",
    ).cast({"status": Grade.create_empty().schema["status"]})


def _sigmoid(values: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    return 1 / (1 + np.exp(-np.clip(np.nan_to_num(values), -50, 50)))
