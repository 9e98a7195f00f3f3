"""The learning curve as a picture."""

from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tasks._maths.learning_curve import CurveFit

DPI = 110
POINTS = 100
COLOUR, RUN_COLOUR = "#4c78d8", "#b8c6e8"


def draw_curve(points: pl.DataFrame, curve: CurveFit, path: Path) -> Path:
    """Write the runs' accuracies, their means and the law up to twice the pairs; the same gives the same bytes."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for run in points.partition_by("run", maintain_order=True):
        axes.plot(run["pairs"].to_numpy(), run["accuracy"].to_numpy(), color=RUN_COLOUR, linewidth=0.7)
    means = points.group_by("size").agg(pl.col("pairs").mean(), pl.col("accuracy").mean()).sort("size")
    axes.plot(means["pairs"].to_numpy(), means["accuracy"].to_numpy(), "o", color=COLOUR, label="mean of the runs")
    law = curve.law
    grid = np.geomspace(float(means["pairs"].min() or 1.0), 2 * curve.largest, POINTS)  # type: ignore[arg-type]
    axes.plot(grid, law(grid), color="black", label=f"{law.a:.3f} - {law.b:.3g} n^-{law.c:.2f}")
    axes.axvline(curve.largest, color="black", linestyle=":", linewidth=0.8)
    axes.set(xscale="log", xlabel="training pairs (the dotted line: all of them)", ylabel="held-out accuracy")
    axes.set_title(curve.verdict, fontsize="small", wrap=True)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path
