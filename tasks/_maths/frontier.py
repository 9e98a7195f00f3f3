"""Refitting n*(C) from one's own runs, the way of the IsoCompute Playbook (arXiv 2603.12151)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from tasks._maths.sigmoid import Sigmoid, fit_sigmoid

BIN = 0.01
FEWEST_SIZES, FEWEST_RECORDS = 3, 4
GRID = 240
SMOOTHED_SHARE = 0.1
Array = np.ndarray
Run = tuple[Float[Array, " points"], Float[Array, " points"]]


@dataclass(frozen=True)
class Frontier:
    """`fit`: log2 n* over log10 C, from `low` to `high` rollouts; `curves`: reward over log10 C per n."""

    fit: Sigmoid
    curves: dict[int, Sigmoid]
    low: float
    high: float
    log_compute: Float[Array, " grid"]
    log_samples: Float[Array, " grid"]

    def samples(self, rollouts: float) -> float:
        """n* at a budget; beyond the fitted range what it is at its end."""
        held = min(max(rollouts, self.low), self.high)
        return float(2.0 ** self.fit(np.log10(held)))


def records(reward: Float[Array, " points"], bin_width: float = BIN) -> Bool[Array, " points"]:
    """The points of a run at which its reward, in bins, is higher than ever before."""
    binned = np.floor(np.asarray(reward, dtype=np.float64) / bin_width + 1e-9)
    before = np.concatenate([[-np.inf], np.maximum.accumulate(binned)[:-1]])
    return binned > before


def record_points(runs: Mapping[int, Sequence[Run]], bin_width: float = BIN) -> dict[int, Run]:
    """Samples per prompt -> log10 C and reward of the record-breaking points of its runs; C > 0 in rollouts."""
    found = {}
    for samples, several in sorted(runs.items()):
        kept = [
            (compute[records(reward, bin_width)], reward[records(reward, bin_width)]) for compute, reward in several
        ]
        if kept:
            compute, reward = (np.concatenate(parts) for parts in zip(*kept, strict=True))
            found[samples] = (np.log10(compute), reward)
    return found


def enough(points: Mapping[int, Run]) -> bool:
    """Whether the points allow a refit: three group sizes with four record-breaking points each."""
    return sum(len(reward) >= FEWEST_RECORDS for _, reward in points.values()) >= FEWEST_SIZES


def refit(points: Mapping[int, Run]) -> Frontier:
    """A sigmoid of reward per n, their upper envelope, and a sigmoid through the n that attain it.

    `points` as `record_points` gives them. No curve counts beyond its own points. The winners along the envelope are
    averaged over a tenth of its length before the fit, as in the paper. Raises `ValueError` where `enough` is false.
    """
    usable = {samples: run for samples, run in points.items() if len(run[1]) >= FEWEST_RECORDS}
    if len(usable) < FEWEST_SIZES:
        raise ValueError(f"{len(usable)} group sizes with {FEWEST_RECORDS} points each, expected {FEWEST_SIZES}")
    curves = {samples: fit_sigmoid(x, reward) for samples, (x, reward) in usable.items()}
    low = min(float(x.min()) for x, _ in usable.values())
    high = max(float(x.max()) for x, _ in usable.values())
    grid = np.linspace(low, high, GRID)
    heights = np.full((len(curves), GRID), -np.inf)
    for row, (samples, curve) in enumerate(curves.items()):
        x = usable[samples][0]
        known = (grid >= x.min()) & (grid <= x.max())
        heights[row, known] = curve(grid[known])
    covered = np.isfinite(heights).any(axis=0)
    winners = np.log2(np.array(list(curves)))[heights.argmax(axis=0)][covered]
    smooth = running_mean(winners, max(1, round(SMOOTHED_SHARE * len(winners))))
    return Frontier(fit_sigmoid(grid[covered], smooth), curves, 10**low, 10**high, grid[covered], smooth)


def running_mean(values: Float[Array, " points"], width: int) -> Float[Array, " points"]:
    """The mean over `width` neighbours; at the ends over those that there are."""
    ones = np.ones(width)
    return np.convolve(values, ones, mode="same") / np.convolve(np.ones_like(values), ones, mode="same")
