"""Figures of where generation went, how hard the prompts were, and what reward more of it would bring."""

from typing import Any

import polars as pl

from tasks._maths.reward_curve import CurveFit
from tasks.report.gather import Content
from tasks.report.plotting import (
    PALETTE,
    Figure,
    Rows,
    Spec,
    bars,
    figure_spec,
    histogram_figure,
    iteration_axis,
)

DIFFICULTY_NOTE = "Pass rate (mean reward where nothing passes or fails) of each prompt, from all of its rollouts."
BAND_COLOUR = "rgba(76, 120, 216, 0.18)"


def spending_figures(content: Content) -> list[Figure | None]:
    """The figures, None where the content has no numbers for one."""
    rows = content.spending.rows
    return [
        curve_figure(content.curve, content.curve_points),
        funnel_figure(content.spending.funnel),
        difficulty_figure(content.difficulty),
        groups_figure(rows),
        tokens_figure(rows),
        diversity_figure(rows),
    ]


def curve_figure(fit: CurveFit | None, points: list[tuple[float, float]]) -> Figure | None:
    """Held-out score over rollouts, ScaleRL's curve with its interval, on to ten times the last point."""
    if fit is None:
        return None
    x, level = fit.compute.tolist(), f"{fit.level:.0%}"
    trained = [(compute, reward) for compute, reward in points if compute > 0]
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    traces: list[Spec] = [
        {"x": x, "y": fit.low.tolist(), **edge},
        {"x": x, "y": fit.high.tolist(), **edge, "fill": "tonexty", "fillcolor": BAND_COLOUR},
        {
            "x": x,
            "y": fit.curve(fit.compute).tolist(),
            "mode": "lines",
            "name": "fit",
            "line": {"color": PALETTE[0], "width": 2.5},
            "hovertemplate": "%{x:,.0f} rollouts: %{y:.3f}<extra></extra>",
        },
        {
            "x": [compute for compute, _ in trained],
            "y": [reward for _, reward in trained],
            "mode": "markers",
            "name": "measured",
            "marker": {"color": PALETTE[1], "size": 8},
            "hovertemplate": "%{x:,.0f} rollouts: %{y:.3f}<extra></extra>",
        },
    ]
    layout = {
        "xaxis": {"type": "log", "title": {"text": "rollouts so far"}},
        "yaxis": {"title": {"text": "held-out score"}},
        "showlegend": False,
    }
    note = (
        f"R0 + (A - R0) / (1 + (C_mid / C)^B), shaded its {level} interval, drawn on to ten times the rollouts so far. "
    )
    end = fit.asymptote
    if fit.determined:
        note += f"It ends at {end.value:.3f} [{end.low:.3f}, {end.high:.3f}]."
    else:
        note += "The scores don't reach past its middle yet: where it ends isn't known."
    return Figure("reward-curve", "Reward against compute", note, figure_spec(traces, layout))


def funnel_figure(funnel: list[tuple[str, int]]) -> Figure | None:
    """What was left of the newest iteration's rollouts after each step."""
    if not funnel:
        return None
    names, counts = [name for name, _ in funnel], [count for _, count in funnel]
    share = [count / max(counts[0], 1) for count in counts]
    colours = [PALETTE[3] if name == "kept" else PALETTE[0] for name in names]
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": counts,
        "y": names,
        "marker": {"color": colours},
        "text": [f"{count:,} ({part:.0%})" for count, part in zip(counts, share, strict=True)],
        "textposition": "auto",
        "hovertemplate": "%{y}: %{x:,}<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": "rollouts"}},
        "yaxis": {"autorange": "reversed"},
        "showlegend": False,
        "bargap": 0.25,
    }
    note = (
        "The newest iteration: rollouts that were sampled, those that every grader answered, and what each rule left."
    )
    return Figure("funnel", "From rollouts to training", note, figure_spec([trace], layout))


def difficulty_figure(histogram: pl.DataFrame) -> Figure | None:
    """How the prompts' pass rates are spread, per iteration."""
    figure = histogram_figure("difficulty", "Difficulty of the prompts", "pass rate", histogram)
    return None if figure is None else Figure(figure.key, figure.title, DIFFICULTY_NOTE, figure.spec)


def groups_figure(rows: Rows) -> Figure | None:
    """Groups that vary, and those that don't by the end at which they lie."""
    known = [row for row in rows if row["groups"]]
    if not known:
        return None
    varied = [row["groups"] - row["even_high"] - row["even_low"] for row in known]
    frame = pl.DataFrame(
        {
            "iteration": [row["iteration"] for row in known],
            "informative": varied,
            "all bad": [row["even_low"] for row in known],
            "all good": [row["even_high"] for row in known],
        }
    )
    traces = [bars(frame, name, name, index) for name, index in (("informative", 3), ("all bad", 2), ("all good", 1))]
    effective = [(row["iteration"], row["effective_groups"]) for row in known if row["effective_groups"] is not None]
    line = {
        "x": [x for x, _ in effective],
        "y": [y for _, y in effective],
        "mode": "lines+markers",
        "name": "with a rollout that trains",
        "line": {"color": PALETTE[6], "dash": "dot"},
        "hovertemplate": "%{y:.4~g}",
    }
    layout = {"xaxis": iteration_axis([row["iteration"] for row in known]), "yaxis": {"title": {"text": "groups"}}}
    note = "Groups whose rewards differ teach; of the others every rollout is as good or as bad as the next."
    return Figure("groups", "Groups that teach", note, figure_spec([*traces, line], {**layout, "barmode": "stack"}))


def tokens_figure(rows: Rows) -> Figure | None:
    """Tokens that were sampled: those that train and those that the filter spared the trainer."""
    known = [row for row in rows if row["tokens_kept"] is not None and row["tokens_saved"] is not None]
    if not known:
        return None
    frame = pl.DataFrame(
        {name: [row[name] for row in known] for name in ("iteration", "tokens_kept", "tokens_saved")},
        schema_overrides={"tokens_kept": pl.Float64, "tokens_saved": pl.Float64},
    )
    traces = [bars(frame, "tokens_kept", "trained", 3), bars(frame, "tokens_saved", "spared", 6)]
    layout = {"xaxis": iteration_axis([row["iteration"] for row in known]), "yaxis": {"title": {"text": "tokens"}}}
    note = "Sampled tokens: those that the update computes, and those that filtering spares it."
    return Figure("tokens", "Tokens", note, figure_spec(traces, {**layout, "barmode": "stack"}))


def diversity_figure(rows: Rows) -> Figure | None:
    """The share of different outputs, per iteration."""
    points = [(row["iteration"], row["distinct_fraction"]) for row in rows if row["distinct_fraction"] is not None]
    if not points:
        return None
    x = [iteration for iteration, _ in points]
    trace: dict[str, Any] = {
        "x": x,
        "y": [share for _, share in points],
        "mode": "lines+markers",
        "line": {"color": PALETTE[4], "width": 2.5},
        "marker": {"size": 8},
        "hovertemplate": "iteration %{x}: %{y:.1%}<extra></extra>",
    }
    layout = {
        "xaxis": iteration_axis(x),
        "yaxis": {"title": {"text": "different outputs"}, "tickformat": ".0%", "range": [0, 1.03]},
        "showlegend": False,
    }
    note = "Different outputs over all outputs of the training rollouts: a fall is a policy that repeats itself."
    return Figure("diversity", "Diversity", note, figure_spec([trace], layout))
