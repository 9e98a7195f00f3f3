"""What figures are made of: colours, axes, bars, and the distribution per iteration."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

PALETTE = ("#4c78d8", "#ef9b20", "#e0554f", "#3aa389", "#8f62d1", "#d6709f", "#7d8a99", "#9c6b4e", "#5aa9e6", "#a3b01e")
FIRST_COLOUR, LAST_COLOUR = (150, 161, 176), (222, 84, 47)
RIDGES = 12
RIDGE_HEIGHT = 0.92
RIDGES_NOTE = "Training rollouts before filtering: the share of each value, an outline per iteration, all to one scale."
Rows = Sequence[Mapping[str, Any]]
Spec = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A figure, what it shows, and how to read it. `small` figures stand two in a row."""

    key: str
    title: str
    note: str
    spec: Spec
    small: bool = False


def histogram_figure(key: str, title: str, unit: str, histogram: pl.DataFrame) -> Figure | None:
    """The distribution per iteration: an outline each for a dozen iterations, else a map."""
    if histogram.is_empty():
        return None
    frames = histogram.partition_by("iteration", maintain_order=True)
    if len(frames) > RIDGES:
        x = [int(frame["iteration"][0]) for frame in frames]
        trace = {
            "type": "heatmap",
            "x": x,
            "y": frames[0]["middle"].to_list(),
            "z": [list(column) for column in zip(*(frame["share"].to_list() for frame in frames), strict=True)],
            "colorscale": "Viridis",
            "colorbar": {"thickness": 10, "tickformat": ".0%", "outlinewidth": 0},
            "hovertemplate": f"iteration %{{x}}, {unit} %{{y:.3~g}}: %{{z:.1%}}<extra></extra>",
        }
        layout = {"xaxis": iteration_axis(x), "yaxis": {"title": {"text": unit}}}
        return Figure(key, title, "Share of the iteration's training rollouts.", figure_spec([trace], layout))
    return Figure(key, title, RIDGES_NOTE, ridges(frames, unit))


def ridges(frames: Sequence[pl.DataFrame], unit: str) -> Spec:
    """A filled outline per iteration, each on its own line, all to one scale."""
    highest = max(float(frame["share"].max() or 0) for frame in frames) or 1.0  # type: ignore[arg-type]
    x = [int(frame["iteration"][0]) for frame in frames]
    traces: list[Spec] = []
    for index, frame in enumerate(frames):
        colour, share = between(index, len(frames)), frame["share"]
        width = float(frame["width"][0])
        edges = [*(frame["middle"] - width / 2).to_list(), float(frame["middle"][-1]) + width / 2]
        heights = (index + share / highest * RIDGE_HEIGHT).to_list()
        baseline = {"x": edges, "y": [index] * len(edges), "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
        hover = f"iteration {x[index]}, {unit} %{{customdata[0]:.3~g}}: %{{customdata[1]:.1%}}<extra></extra>"
        outline = {
            "x": edges,
            "y": [*heights, heights[-1]],
            "mode": "lines",
            "line": {"shape": "hv", "color": f"rgb{colour}", "width": 1.5},
            "fill": "tonexty",
            "fillcolor": f"rgba{(*colour, 0.35)}",
            "customdata": [*zip(frame["middle"].to_list(), share.to_list(), strict=True)],
            "hovertemplate": hover,
        }
        traces += [baseline, outline]
    labels = {"tickvals": list(range(len(x))), "ticktext": [str(each) for each in x]}
    yaxis = {"title": {"text": "iteration"}, **labels, "zeroline": False, "range": [-0.1, len(x) + 0.05]}
    return figure_spec(
        traces, {"xaxis": {"title": {"text": unit}, "zeroline": False}, "yaxis": yaxis, "showlegend": False}
    )


def finite(value: Any) -> float | None:
    """The value as a number that JSON can hold; None for what isn't one."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def bars(frame: pl.DataFrame, column: str, name: str, index: int) -> Spec:
    """Bars of a column over the iterations, in the palette's colour of that index."""
    return {
        "type": "bar",
        "x": frame["iteration"].to_list(),
        "y": frame[column].to_list(),
        "name": name,
        "marker": {"color": PALETTE[index % len(PALETTE)]},
        "hovertemplate": "%{y:.4~g}",
    }


def iteration_axis(x: Sequence[int]) -> Spec:
    """An axis of whole iterations with room at both ends."""
    low, high = min(x), max(x)
    ticks = {"dtick": 1, "tick0": 0} if high - low <= 20 else {}
    return {"title": {"text": "iteration"}, "range": [low - 0.6, high + 0.6], "tickformat": "d", **ticks}


def between(index: int, count: int) -> tuple[int, int, int]:
    """A colour from the first iteration's to the last's."""
    share = index / (count - 1) if count > 1 else 1.0
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(FIRST_COLOUR, LAST_COLOUR, strict=True))
    return red, green, blue


def figure_spec(traces: list[Spec], layout: Spec) -> Spec:
    """The two parts that Plotly takes."""
    return {"data": traces, "layout": layout}
