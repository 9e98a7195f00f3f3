"""Whether a short series rises."""

import math

import numpy as np
from jaxtyping import Float


def slope_t(values: Float[np.ndarray, " points"]) -> float:
    """The least-squares slope over 0, 1, 2, ... in its standard errors (Student's t); infinite on an exact line.

    Raises `ValueError` with fewer than three values: a line fits two exactly.
    """
    y = np.asarray(values, dtype=np.float64)
    if len(y) < 3:
        raise ValueError(f"{len(y)} values have no trend, expected at least 3")
    x = np.arange(len(y)) - (len(y) - 1) / 2
    slope = float((x * y).sum() / (x**2).sum())
    residual = y - y.mean() - slope * x
    error = math.sqrt(float((residual**2).sum()) / (len(y) - 2) / float((x**2).sum()))
    if error < 1e-12:
        return 0.0 if abs(slope) < 1e-12 else math.copysign(math.inf, slope)
    return slope / error
