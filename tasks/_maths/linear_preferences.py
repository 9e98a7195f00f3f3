"""Linear Bradley-Terry with ridge: Newton's method to the minimum, in the space of features or of pairs.

A pair is the difference x of its answers' features; f = x . theta is the difference of their scores. Of a target
t in [0, 1], a weight w and a margin m a pair costs

    w (softplus(f - m) - t (f - m)),

which is -w log sigma(f - m) at t = 1 (methods: Bradley-Terry with the margin of Llama 2, arXiv 2307.09288, equation 2),
the loss of a smoothed label at t = 1 - epsilon, and that of a tie at t = 1/2. Added is ridge / 2 |theta|^2.

Each Newton step is solved by conjugate gradients, which touch the matrix some dozens of times and don't factor it: of
1,441 pairs a path of four ridges takes 0.3 to 0.5 s on two cores, by Cholesky's factors 1.8 to 3.1 s.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import expit

STEPS = 50
TOLERANCE = 1e-9
HALVINGS = 30
# Of a step of Newton's, relative: in the space of pairs errors of it grow by the kernel over the ridge.
STEP_TOLERANCE = 1e-9
FEWEST_ITERATIONS = 50
Pairs = Float[np.ndarray, " pairs"]
Solver = Callable[[np.ndarray, "Labels", float, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Labels:
    """What is known of each pair: the target t, its weight w, and the margin m by which the first should win."""

    targets: Pairs
    weights: Pairs
    margins: Pairs

    @classmethod
    def certain(cls, pairs: int) -> "Labels":
        """The first answer of every pair is the better one, all weigh the same, without a margin."""
        return cls(np.ones(pairs), np.ones(pairs), np.zeros(pairs))

    def of(self, rows: np.ndarray) -> "Labels":
        """Those of some pairs: indices or a mask."""
        return Labels(self.targets[rows], self.weights[rows], self.margins[rows])

    def weighted(self, weights: Pairs) -> "Labels":
        """The same with each weight multiplied."""
        return Labels(self.targets, self.weights * weights, self.margins)

    def loss(self, scores: Pairs) -> float:
        """The weighted sum of losses, in nats, of score differences."""
        f = scores - self.margins
        return float((self.weights * (np.logaddexp(0, f) - self.targets * f)).sum())


def fit_path(
    differences: Float[np.ndarray, "pairs features"], labels: Labels, ridges: Sequence[float]
) -> Float[np.ndarray, "ridges features"]:
    """theta at each ridge, in their order. Raises `ValueError` without pairs and for a ridge that is not positive."""
    x = np.ascontiguousarray(differences, dtype=np.float64)
    if len(x) <= x.shape[1]:
        return along_ridges(by_pairs, x @ x.T, labels, ridges) @ x
    return along_ridges(by_features, x, labels, ridges)


def along_ridges(
    solve: Solver, design: np.ndarray, labels: Labels, ridges: Sequence[float], start: np.ndarray | None = None
) -> Float[np.ndarray, "ridges coefficients"]:
    """`by_features` or `by_pairs` at each ridge: the largest first, each from the one before. Raises as `fit_path`."""
    if not len(design) or min(ridges) <= 0:
        raise ValueError(f"{len(design)} pairs and ridges {list(ridges)}: expected pairs, and every ridge above 0")
    found = np.zeros((len(ridges), design.shape[1]))
    start = np.zeros(design.shape[1]) if start is None else start
    for place in sorted(range(len(ridges)), key=lambda index: -ridges[index]):
        found[place] = start = solve(design, labels, ridges[place], start)
    return found


def fit(
    differences: Float[np.ndarray, "pairs features"], labels: Labels, ridge: float
) -> Float[np.ndarray, " features"]:
    """theta at one ridge."""
    return fit_path(differences, labels, [ridge])[0]


def by_features(
    x: Float[np.ndarray, "pairs features"], labels: Labels, ridge: float, start: Float[np.ndarray, " features"]
) -> Float[np.ndarray, " features"]:
    """Newton on theta: (X'WX + ridge I) step = X'g - ridge theta."""

    def objective(theta: np.ndarray) -> float:
        return labels.loss(x @ theta) + 0.5 * ridge * float(theta @ theta)

    def step(theta: np.ndarray) -> np.ndarray:
        slopes, curvatures = _derivatives(x @ theta, labels)

        def whole() -> np.ndarray:
            return (x * curvatures[:, None]).T @ x + ridge * np.eye(x.shape[1])

        return _solved(lambda v: x.T @ (curvatures * (x @ v)) + ridge * v, x.T @ slopes - ridge * theta, whole)

    return _newton(objective, step, start)


def by_pairs(kernel: Float[np.ndarray, "pairs pairs"], labels: Labels, ridge: float, start: Pairs) -> Pairs:
    """Newton on alpha with theta = X' alpha: Rasmussen & Williams, "Gaussian Processes for Machine Learning",
    algorithm 3.1, with the covariance K / ridge.
    """

    def objective(alpha: np.ndarray) -> float:
        f = kernel @ alpha
        return labels.loss(f) + 0.5 * ridge * float(alpha @ f)

    def step(alpha: np.ndarray) -> np.ndarray:
        f = kernel @ alpha
        slopes, curvatures = _derivatives(f, labels)
        root = np.sqrt(curvatures)
        b = curvatures * f + slopes

        def whole() -> np.ndarray:
            return np.asarray(root[:, None] * kernel * (root / ridge)) + np.eye(len(kernel))

        solved = _solved(lambda v: v + root * (kernel @ (root * v)) / ridge, root * (kernel @ b) / ridge, whole)
        return (b - root * solved) / ridge - alpha

    return _newton(objective, step, start)


def _solved(
    product: Callable[[np.ndarray], np.ndarray], right: np.ndarray, whole: Callable[[], np.ndarray]
) -> np.ndarray:
    """z with A z = right, of the positive definite A whose products these are.

    Where A is so ill-conditioned that conjugate gradients don't get there (a ridge of almost nothing), by Cholesky's
    factors of `whole`.
    """
    size = len(right)
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    found, trouble = cg(operator, right, rtol=STEP_TOLERANCE, maxiter=max(size, FEWEST_ITERATIONS))
    return np.asarray(cho_solve(cho_factor(whole()), right) if trouble else found)


def _derivatives(scores: Pairs, labels: Labels) -> tuple[Pairs, Pairs]:
    """The falling slope w (t - p) and the curvature w p (1 - p) of each pair's loss."""
    p = expit(scores - labels.margins)
    return labels.weights * (labels.targets - p), labels.weights * p * (1 - p)


def _newton(
    objective: Callable[[np.ndarray], float], step: Callable[[np.ndarray], np.ndarray], start: np.ndarray
) -> np.ndarray:
    """Newton with halved steps: the objective is strictly convex, so it ends at the one minimum."""
    at, value = start, objective(start)
    for _ in range(STEPS):
        direction, size = step(at), 1.0
        for _ in range(HALVINGS):
            reached = objective(at + size * direction)
            if reached <= value:
                break
            size /= 2
        else:
            return at
        gained, at, value = value - reached, at + size * direction, reached
        if gained <= TOLERANCE * (1 + abs(value)):
            return at
    return at
