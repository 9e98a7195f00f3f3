"""The main plots as PNG files, for pages that show images, such as MLflow's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tasks.report.gather import Content
from tasks.report.reward_model_images import draw_checks, draw_overoptimisation

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


def _curve(figure: Figure, content: Content) -> bool:
    """Held-out score over rollouts, the fitted curve and its interval."""
    fit, axes = content.curve, figure.subplots()
    if fit is None:
        return False
    axes.fill_between(fit.compute, fit.low, fit.high, alpha=0.2)
    axes.plot(fit.compute, fit.curve(fit.compute))
    axes.plot(*zip(*[point for point in content.curve_points if point[0] > 0], strict=True), "o")
    axes.set(xscale="log", xlabel="rollouts so far", ylabel="held-out score")
    return True


def _funnel(figure: Figure, content: Content) -> bool:
    """What was left of the newest iteration's rollouts after each step."""
    axes = figure.subplots()
    names = [name for name, _ in content.spending.funnel]
    drawn = axes.barh(names, [count for _, count in content.spending.funnel])
    axes.bar_label(drawn, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.set(xlabel="rollouts")
    return bool(names)


def _groups(figure: Figure, content: Content) -> bool:
    """Groups that vary and those that don't, stacked, per iteration."""
    axes = figure.subplots()
    rows = [row for row in content.spending.rows if row["groups"]]
    floor = [0] * len(rows)
    for name, label in (("varied", "informative"), ("even_low", "all bad"), ("even_high", "all good")):
        counts = [row.get(name, row["groups"] - row["even_low"] - row["even_high"]) for row in rows]
        axes.bar([row["iteration"] for row in rows], counts, bottom=floor, label=label)
        floor = [below + count for below, count in zip(floor, counts, strict=True)]
    axes.set(xlabel="iteration", ylabel="groups", xticks=[row["iteration"] for row in rows])
    if rows:
        axes.legend(fontsize="x-small")
    return bool(rows)


def _difficulty(figure: Figure, content: Content) -> bool:
    """The prompts' pass rates as a map over the iterations."""
    axes = figure.subplots()
    frames = content.difficulty.partition_by("iteration", maintain_order=True)
    if not frames:
        return False
    shares = np.array([frame["share"].to_list() for frame in frames]).T
    half = frames[0]["width"][0] / 2
    bottom, top = frames[0]["middle"][0] - half, frames[0]["middle"][-1] + half
    extent = (0.5, len(frames) + 0.5, bottom, top)
    axes.imshow(shares, origin="lower", aspect="auto", extent=extent)
    ticks = [str(frame["iteration"][0]) for frame in frames]
    axes.set(xlabel="iteration", ylabel="pass rate of the prompts", xticks=range(1, len(frames) + 1), xticklabels=ticks)
    return True


DRAWINGS: dict[str, Drawing] = {
    "held-out-score.png": _held_out,
    "reward.png": _reward,
    "reward-curve.png": _curve,
    "funnel.png": _funnel,
    "groups.png": _groups,
    "difficulty.png": _difficulty,
    "seconds.png": _seconds,
    "reward-model.png": lambda figure, content: draw_checks(figure, content.honesty),
    "over-optimisation.png": lambda figure, content: draw_overoptimisation(figure, content.honesty),
}
