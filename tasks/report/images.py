"""The main plots as PNG files, for pages that show images, such as MLflow's."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tasks.report.gather import Content

DPI = 110
Drawing = Callable[[Figure, Content], bool]


def draw_images(content: Content, folder: Path) -> dict[str, Path]:
    """File name -> path of each plot that the content has something for."""
    drawn = {}
    for name, draw in DRAWINGS.items():
        figure = Figure(figsize=(7, 4), layout="constrained")
        FigureCanvasAgg(figure)
        if draw(figure, content):
            drawn[name] = folder / name
            figure.savefig(drawn[name], dpi=DPI)
    return drawn


def _held_out(figure: Figure, content: Content) -> bool:
    """Held-out score per iteration with its interval."""
    known = [row for row in content.evaluations if "mean_score" in row]
    axes = figure.subplots()
    middle = [row["mean_score"] for row in known]
    below = [row["mean_score"] - row.get("mean_score_low", row["mean_score"]) for row in known]
    above = [row.get("mean_score_high", row["mean_score"]) - row["mean_score"] for row in known]
    axes.errorbar([row["iteration"] for row in known], middle, yerr=[below, above], marker="o", capsize=4)
    axes.set(xlabel="iteration", ylabel="held-out score", xticks=[row["iteration"] for row in known])
    return bool(known)


def _reward(figure: Figure, content: Content) -> bool:
    """Mean reward per iteration, and the mean score of each grader in it."""
    axes = figure.subplots()
    names = sorted({name for row in content.rewards for name in row if name == "reward_mean" or _is_grader(name)})
    for name in names:
        points = [(row["iteration"], row[name]) for row in content.rewards if name in row]
        label = name.removeprefix("score/").removesuffix("_mean")
        axes.plot(*zip(*points, strict=True), marker="o", label=label, linestyle=":" if _is_grader(name) else "-")
    axes.set(xlabel="iteration", ylabel="mean")
    if names:
        axes.legend()
    return bool(names)


def _seconds(figure: Figure, content: Content) -> bool:
    """Seconds per stage, stacked, per iteration."""
    axes = figure.subplots()
    floor = dict.fromkeys(content.iterations, 0.0)
    for step in content.seconds["step"].unique(maintain_order=True):
        rows = content.seconds.filter(step=step).iter_rows(named=True)
        found = {row["iteration"]: row["seconds"] for row in rows}
        axes.bar(list(found), list(found.values()), bottom=[floor[k] for k in found], label=step)
        floor |= {k: floor[k] + value for k, value in found.items()}
    axes.set(xlabel="iteration", ylabel="seconds", xticks=content.iterations)
    if len(content.seconds):
        axes.legend(fontsize="x-small", ncols=2)
    return bool(len(content.seconds))


def _is_grader(name: str) -> bool:
    return name.startswith("score/") and name.endswith("_mean")


DRAWINGS: dict[str, Drawing] = {"held-out-score.png": _held_out, "reward.png": _reward, "seconds.png": _seconds}
