"""A rising sigmoid, and its least-squares fit: the shape of reward and of the best group size over compute."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

SLOPES = (0.3, 50.0)
COARSE, FINE = 48, 9
SHRINK, ROUNDS = 0.65, 30
NO_SPREAD = 1e-12
Array = np.ndarray


@dataclass(frozen=True)
class Sigmoid:
    """floor + height / (1 + exp(-slope (x - midpoint))): from `floor` far left to `floor + height` far right."""

    height: float
    slope: float
    midpoint: float
    floor: float

    def __call__(self, x: Float[Array, " points"] | float) -> Float[Array, " points"]:
        """The values at x; x may be -inf, where the value is the floor."""
        return self.floor + self.height * logistic(self.slope * (np.asarray(x, dtype=np.float64) - self.midpoint))

    @property
    def ceiling(self) -> float:
        """What it approaches."""
        return self.floor + self.height


def logistic(z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """1 / (1 + exp(-z)) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * z))


def fit_sigmoid(
    x: Float[Array, " points"],
    y: Float[Array, " points"],
    *,
    midpoints: tuple[float, float] | None = None,
    slopes: tuple[float, float] = SLOPES,
) -> Sigmoid:
    """The sigmoid of least squared error that doesn't fall (height >= 0): `fit_sigmoids` for one row of values."""
    return fit_sigmoids(x, np.asarray(y)[None, :], midpoints=midpoints, slopes=slopes)[0]


def fit_sigmoids(
    x: Float[Array, " points"],
    y: Float[Array, "rows points"],
    *,
    midpoints: tuple[float, float] | None = None,
    slopes: tuple[float, float] = SLOPES,
) -> list[Sigmoid]:
    """The sigmoids of least squared error that don't fall (height >= 0), one per row of values at the same x.

    With slope and midpoint given, floor and height are linear: they are solved for, and only the other two are
    searched, on a grid that then closes in on its best point (variable projection, Golub & Pereyra 1973). No start
    value, no randomness. `midpoints` bounds the search, by default by the finite x; values of x may be -inf.

    Raises `ValueError` with fewer than two different x.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    finite = x[np.isfinite(x)]
    if len(np.unique(x)) < 2 or not len(finite):
        raise ValueError(f"{len(np.unique(x))} different points: a sigmoid needs at least two")
    low = np.array([np.log(slopes[0]), midpoints[0] if midpoints else finite.min()])
    high = np.array([np.log(slopes[1]), midpoints[1] if midpoints else finite.max()])
    best, half, points = ((low + high) / 2)[None, :], (high - low) / 2, COARSE
    rows = np.arange(len(y))
    for _ in range(ROUNDS):
        grid = np.clip(best[:, :, None] + half[:, None] * np.linspace(-1, 1, points), low[:, None], high[:, None])
        loss, _, _ = _projected(x, y, np.exp(grid[:, 0, :, None]), grid[:, 1, None, :])
        slope, middle = np.unravel_index(loss.reshape(len(y), -1).argmin(axis=1), loss.shape[1:])
        # The first grid is the same for every row.
        own = np.broadcast_to(grid, (len(y), *grid.shape[1:]))
        best = np.stack([own[rows, 0, slope], own[rows, 1, middle]], axis=1)
        half = half * (SHRINK if points == FINE else 4 / points)
        points = FINE
    steepness = np.exp(best[:, 0])
    _, height, floor = _projected(x, y, steepness[:, None, None], best[:, 1, None, None])
    found = zip(height[:, 0, 0], steepness, best[:, 1], floor[:, 0, 0], strict=True)
    return [Sigmoid(*(float(value) for value in each)) for each in found]


def _projected(
    x: Float[Array, " points"],
    y: Float[Array, "rows points"],
    slope: Float[Array, "grids slopes 1"],
    middle: Float[Array, "grids 1 middles"],
) -> tuple[
    Float[Array, "rows slopes middles"], Float[Array, "rows slopes middles"], Float[Array, "rows slopes middles"]
]:
    """Mean squared error, height and floor of the best sigmoid for each slope and midpoint.

    There is one grid for all rows, or one for each.
    """
    shape = logistic(slope[..., None] * (x - middle[..., None]))
    mean = shape.mean(axis=-1)
    spread = shape - mean[..., None]
    means = y.mean(axis=1)[:, None, None]
    centred = y - means[:, 0]
    if len(shape) == 1:
        covariance = np.moveaxis(spread[0] @ centred.T, -1, 0) / len(x)
    else:
        covariance = np.einsum("rsmp,rp->rsm", spread, centred) / len(x)
    variance = np.maximum((spread**2).mean(axis=-1), NO_SPREAD)
    height = np.maximum(covariance, 0.0) / variance
    error = (centred**2).mean(axis=1)[:, None, None] - height * (2 * covariance - height * variance)
    return error, height, means - height * mean
