"""The reward model's plots as images: the checks over the iterations, and over-optimisation."""

import math

from matplotlib.figure import Figure

from tasks.report.reward_models import RewardModels

SHOWN = {
    "heldout_accuracy": "accuracy on held-out pairs",
    "gap_mae": "mean absolute gap to people",
    "gap_bias": "bias",
    "length_correlation": "correlation with length",
}


def draw_checks(figure: Figure, models: RewardModels) -> bool:
    """Accuracy, gap, bias and length of the reward model in charge, each in a panel of its own."""
    rows = [row for row in models.checks if not row["candidate"]]
    names = [name for name in SHOWN if any(name in row for row in rows)]
    if not names:
        return False
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        points = [(row["iteration"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True), marker="o")
        axes.set(xlabel="iteration", title=SHOWN[name])
        axes.title.set_fontsize("small")
    return True


def draw_overoptimisation(figure: Figure, models: RewardModels) -> bool:
    """Proxy and held-out reward over sqrt(KL), or over the iterations where nobody measured it."""
    watched = models.watched
    if watched is None or len(watched.rows) < 2:
        return False
    measured = all(row["kl"] is not None for row in watched.rows)
    x = [math.sqrt(row["kl"]) if measured else row["iteration"] for row in watched.rows]
    axes = figure.subplots()
    axes.plot(x, [row["gold"] for row in watched.rows], marker="o", label=watched.gold)
    axes.plot(x, [row["proxy"] for row in watched.rows], marker="o", linestyle=":", label="reward model")
    axes.set(xlabel="sqrt(KL) from the first policy" if measured else "iteration", ylabel="mean")
    axes.legend()
    return True
