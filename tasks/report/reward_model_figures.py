"""Figures of the reward model: accuracy, gap, length, calibration, uncertainty, and over-optimisation."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.report.plotting import PALETTE, Figure, Rows, Spec, figure_spec, finite, iteration_axis
from tasks.report.reward_models import RewardModels, Watched

LIMIT = 0.05
DOTTED = {"dash": "dot", "width": 1, "color": PALETTE[6]}
CURVE_POINTS = 80


def reward_model_figures(models: RewardModels) -> list[Figure | None]:
    """The figures, None where nothing tells them."""
    return [
        accuracy_figure(models.checks),
        gap_figure(models.checks),
        length_figure(models.checks),
        calibration_figure(models.details),
        uncertainty_figure(models.details["accuracy"]),
        overoptimisation_figure(models.watched),
    ]


def accuracy_figure(checks: Rows) -> Figure | None:
    """Held-out accuracy with its interval, of the reward model in charge and of those that wanted in."""
    traces = [
        _line(
            [row for row in checks if row["candidate"] is candidate], "heldout_accuracy", name, index, dashed=candidate
        )
        for index, (candidate, name) in enumerate(((False, "in charge"), (True, "candidate")))
    ]
    return _over_iterations(
        "reward-accuracy",
        "Reward model: accuracy",
        "Share of held-out pairs that it orders as their source did, with its 95 % interval; dotted is chance.",
        [trace for trace in traces if trace],
        checks,
        {"yaxis": {"title": {"text": "accuracy"}, "range": [0, 1]}, "shapes": [_level(0.5)]},
    )


def gap_figure(checks: Rows) -> Figure | None:
    """The gap to people's scores over the iterations."""
    rows = [row for row in checks if not row["candidate"]]
    names = {"gap_bias": "bias", "gap_mae": "mean absolute gap", "gap_spearman": "Spearman"}
    traces = [_line(rows, metric, name, index) for index, (metric, name) in enumerate(names.items())]
    return _over_iterations(
        "reward-gap",
        "Reward model: gap to people",
        "Calibrated scores less people's absolute scores on held-out answers, in people's units, and their rank "
        "correlation. Each answer by a map that was fitted without it: a bias that is left lies in slices.",
        [trace for trace in traces if trace],
        rows,
        {"yaxis": {"title": {"text": "gap"}}, "shapes": [_level(0.0)]},
    )


def length_figure(checks: Rows) -> Figure | None:
    """The correlation of reward and length at fixed quality over the iterations."""
    rows = [row for row in checks if not row["candidate"]]
    names = {"length_correlation": "as it grades", "length_correlation_raw": "before mitigation"}
    traces = [
        _line(rows, metric, name, index, dashed=bool(index)) for index, (metric, name) in enumerate(names.items())
    ]
    return _over_iterations(
        "reward-length",
        "Reward model: length",
        f"Rank correlation of reward and length at fixed quality; within the dotted ±{LIMIT:g} it counts as none.",
        [trace for trace in traces if trace],
        rows,
        {"yaxis": {"title": {"text": "correlation"}}, "shapes": [_level(LIMIT), _level(-LIMIT)]},
    )


def calibration_figure(details: dict[str, list[dict[str, Any]]]) -> Figure | None:
    """Reliability of the newest check: confidence against how often the preferred answer was the chosen one."""
    predicted = {row["slice"]: row["value"] for row in details["predicted"]}
    rows = [row for row in details["observed"] if row["slice"] in predicted]
    if not rows:
        return None
    x = [predicted[row["slice"]] for row in rows]
    trace = {
        "x": x,
        "y": [row["value"] for row in rows],
        "mode": "lines+markers",
        "marker": {"size": 8},
        "line": {"color": PALETTE[0], "width": 2},
        "error_y": _errors(rows, "value", "low", "high", PALETTE[0]),
        "customdata": [row["count"] for row in rows],
        "hovertemplate": "said %{x:.3f}, came %{y:.3f}, %{customdata} pairs<extra></extra>",
    }
    diagonal = {"x": [0.5, 1], "y": [0.5, 1], "mode": "lines", "line": DOTTED, "hoverinfo": "skip"}
    layout = {
        "xaxis": {"title": {"text": "confidence"}, "range": [0.48, 1.02]},
        "yaxis": {"title": {"text": "right"}},
        "showlegend": False,
    }
    note = "The newest check: of pairs with such a probability of the answer that it prefers, how many were right."
    return Figure("reward-calibration", "Reward model: calibration", note, figure_spec([diagonal, trace], layout))


def uncertainty_figure(accuracies: Rows) -> Figure | None:
    """Accuracy by decile of the members' spread, of the newest check."""
    rows = [row for row in accuracies if row["slice"].startswith("uncertainty ")]
    if not rows:
        return None
    trace = {
        "type": "bar",
        "x": [row["slice"].split()[1].rstrip(":") for row in rows],
        "y": [row["value"] for row in rows],
        "marker": {"color": PALETTE[4]},
        "error_y": _errors(rows, "value", "low", "high", PALETTE[6]),
        "customdata": [row["slice"].rpartition(": ")[2] for row in rows],
        "hovertemplate": "spread %{customdata}: %{y:.3f}<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": "part of the pairs, by spread of the members"}},
        "yaxis": {"title": {"text": "accuracy"}, "range": [0, 1]},
        "showlegend": False,
        "shapes": [_level(0.5)],
    }
    note = "The newest check: an uncertainty that means something has its errors on the right."
    return Figure("reward-uncertainty", "Reward model: uncertainty", note, figure_spec([trace], layout))


def overoptimisation_figure(watched: Watched | None) -> Figure | None:
    """Proxy and held-out reward, over sqrt(KL) where it was measured, else over the iterations."""
    if watched is None or len(watched.rows) < 2:
        return None
    measured = all(row["kl"] is not None for row in watched.rows)
    x = [math.sqrt(row["kl"]) if measured else row["iteration"] for row in watched.rows]
    traces: list[Spec] = [
        {
            "x": x,
            "y": [row[name] for row in watched.rows],
            "mode": "lines+markers",
            "name": label,
            "line": {"color": PALETTE[index], "width": 2, "dash": "dot" if index else "solid"},
            "customdata": [row["iteration"] for row in watched.rows],
            "hovertemplate": "policy of iteration %{customdata}: %{y:.3f}",
        }
        for index, (name, label) in enumerate((("gold", watched.gold), ("proxy", "reward model")))
    ]
    layout: Spec = {"xaxis": {"title": {"text": "sqrt(KL) from the first policy" if measured else "iteration"}}}
    layout["yaxis"] = {"title": {"text": "mean"}}
    if measured:
        traces += _fitted(watched, max(x))
    note = "What the reward model says of its policies, and what it can't learn from. " + _turning_words(watched)
    if watched.alarm is not None:
        note += (
            f" {'ALARM: ' if watched.alarm.raised else ''}{watched.alarm.found[:1].upper()}{watched.alarm.found[1:]}."
        )
    return Figure("over-optimisation", "Over-optimisation", note, figure_spec(traces, layout))


def _fitted(watched: Watched, farthest: float) -> list[Spec]:
    turning = watched.turning
    if turning is None or farthest <= 0:
        return []
    end = min(max(farthest, turning.distance), 1.5 * farthest)
    grid = np.linspace(farthest / CURVE_POINTS, end, CURVE_POINTS)
    line = {"color": PALETTE[6], "width": 1.5}
    return [{"x": grid.tolist(), "y": turning(grid).tolist(), "mode": "lines", "name": "fit", "line": line}]


def _turning_words(watched: Watched) -> str:
    turning = watched.turning
    if turning is None:
        return "Too few policies with a measured KL for a curve."
    if not math.isfinite(turning.distance):
        return "R = d (a - b log d) doesn't turn."
    high = f"{turning.high:.2f}" if math.isfinite(turning.high) else "∞"
    where = "behind us" if turning.reached else "not reached"
    return f"R = d (a - b log d) turns at sqrt(KL) {turning.distance:.2f} [{turning.low:.2f}, {high}], {where}."


def _over_iterations(key: str, title: str, note: str, traces: list[Spec], rows: Rows, layout: Spec) -> Figure | None:
    if not traces:
        return None
    axis = iteration_axis([row["iteration"] for row in rows])
    return Figure(key, title, note, figure_spec(traces, {"xaxis": axis, "showlegend": len(traces) > 1, **layout}))


def _line(rows: Rows, metric: str, name: str, index: int, *, dashed: bool = False) -> Spec | None:
    known = [row for row in rows if finite(row.get(metric)) is not None]
    if not known:
        return None
    return {
        "x": [row["iteration"] for row in known],
        "y": [row[metric] for row in known],
        "mode": "lines+markers",
        "name": name,
        "line": {"color": PALETTE[index], "width": 2, "dash": "dot" if dashed else "solid"},
        "marker": {"size": 8},
        "error_y": _errors(known, metric, f"{metric}_low", f"{metric}_high", PALETTE[index]),
        "hovertemplate": "%{y:.3f}",
    }


def _errors(rows: Sequence[Any], middle: str, low: str, high: str, colour: str) -> Spec:
    ends = [(finite(row.get(low)), finite(row.get(high)), row[middle]) for row in rows]
    above = [top - value if top is not None else 0 for _, top, value in ends]
    below = [value - bottom if bottom is not None else 0 for bottom, _, value in ends]
    return {"type": "data", "array": above, "arrayminus": below, "color": colour, "thickness": 1.5}


def _level(value: float) -> Spec:
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "line": DOTTED}
