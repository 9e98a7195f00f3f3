"""Accuracy against the number of training pairs: a - b n^-c, and whether more pairs would help.

Stiennon et al. (arXiv 2009.01325) found 1.1 points for each doubling of 8,000 to 64,000 comparisons.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

EXPONENTS = np.linspace(0.05, 2.0, 40)
RESAMPLES = 400
LEVEL = 0.95
FEWEST_SIZES = 3
WORTHWHILE = 0.005
Curve = Float[np.ndarray, " sizes"]


@dataclass(frozen=True)
class PowerLaw:
    """accuracy(n) = a - b n^-c with b >= 0 and a <= 1; n in pairs."""

    a: float
    b: float
    c: float

    def __call__(self, pairs: Curve | float) -> Curve:
        """The accuracy that so many pairs give."""
        return self.a - self.b * np.asarray(pairs, dtype=np.float64) ** -self.c


@dataclass(frozen=True)
class CurveFit:
    """The fitted law; the gain of doubling all pairs and the ceiling a, each with a percentile interval."""

    law: PowerLaw
    largest: float
    gain: float
    gain_low: float
    gain_high: float
    ceiling_low: float
    ceiling_high: float

    @property
    def verdict(self) -> str:
        """In words whether more data would help; half a point is what counts as help."""
        said = f"doubling {self.largest:,.0f} pairs would add {100 * self.gain:.1f} points"
        interval = f"{100 * self.gain_low:.1f} to {100 * self.gain_high:.1f}"
        if self.gain_low > WORTHWHILE:
            return f"more data would help: {said} of accuracy ({interval})"
        if self.gain_high < WORTHWHILE:
            return f"more data would hardly help: {said} of accuracy ({interval}); better features or labels would"
        return f"these pairs can't tell whether more data would help: {said} of accuracy ({interval})"


def fit_curve(
    pairs: Float[np.ndarray, "runs sizes"], accuracies: Float[np.ndarray, "runs sizes"], *, seed: int
) -> CurveFit:
    """The law through the runs' mean accuracy at each size; intervals resample whole runs.

    A run is one split with all its sizes. Raises `ValueError` for fewer than three sizes.
    """
    if accuracies.ndim != 2 or accuracies.shape[1] < FEWEST_SIZES:
        raise ValueError(f"accuracies of shape {accuracies.shape}: expected runs x sizes, three sizes at least")
    sizes, largest = pairs.mean(axis=0), float(pairs.mean(axis=0).max())
    law = fit_power_law(sizes, accuracies.mean(axis=0))
    random = np.random.default_rng(seed)
    drawn = random.integers(0, len(accuracies), size=(RESAMPLES, len(accuracies)))
    laws = [fit_power_law(sizes, accuracies[rows].mean(axis=0)) for rows in drawn]
    gains = np.array([_doubled(each, largest) for each in laws])
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    gain_low, gain_high = np.quantile(gains, ends)
    ceiling_low, ceiling_high = np.quantile([each.a for each in laws], ends)
    return CurveFit(
        law,
        largest,
        _doubled(law, largest),
        float(gain_low),
        float(gain_high),
        float(ceiling_low),
        float(ceiling_high),
    )


def fit_power_law(pairs: Curve, accuracies: Curve) -> PowerLaw:
    """Least squares: for each c of a grid 1 - accuracy = (1 - a) + b n^-c is a line whose two terms are at least 0."""
    x = pairs[:, None] ** -EXPONENTS
    y = (1 - accuracies)[:, None]
    centred = x - x.mean(axis=0)
    b = np.maximum((centred * y).sum(axis=0) / (centred**2).sum(axis=0), 0.0)
    missing = y.mean() - b * x.mean(axis=0)
    through_zero = missing < 0
    b = np.where(through_zero, (x * y).sum(axis=0) / (x**2).sum(axis=0), b)
    missing = np.where(through_zero, 0.0, missing)
    best = int(((y - missing - b * x) ** 2).sum(axis=0).argmin())
    return PowerLaw(float(1 - missing[best]), float(b[best]), float(EXPONENTS[best]))


def _doubled(law: PowerLaw, pairs: float) -> float:
    return float(law(2 * pairs) - law(pairs))
