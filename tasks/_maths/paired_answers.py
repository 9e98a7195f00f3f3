"""Pairs of answers as rows of a matrix of frozen states: what heads are fitted to, cross-validated and measured on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int, Shaped

from tasks._maths.folds import grouped_folds
from tasks._maths.linear_preferences import Labels, along_ridges, by_features, by_pairs

SMALLEST_SCALE = 1e-6
INNER_FOLDS = 3
MIN_FOLDS = 2


@dataclass(frozen=True)
class PairedAnswers:
    """States of distinct answers; of each pair the rows of its two answers, its prompt's cluster, its labels."""

    states: Float[np.ndarray, "answers features"]
    first: Int[np.ndarray, " pairs"]
    second: Int[np.ndarray, " pairs"]
    clusters: Shaped[np.ndarray, " pairs"]
    labels: Labels

    def __len__(self) -> int:
        return len(self.first)

    def of(self, rows: np.ndarray) -> "PairedAnswers":
        """Some of the pairs: indices or a mask. The states stay."""
        return replace(
            self,
            first=self.first[rows],
            second=self.second[rows],
            clusters=self.clusters[rows],
            labels=self.labels.of(rows),
        )

    def answers(self) -> Int[np.ndarray, " answers"]:
        """The rows of the distinct answers of these pairs."""
        return np.unique(np.concatenate([self.first, self.second]))


@dataclass(frozen=True)
class Standard:
    """The mean and deviation of each feature over the answers that train; a feature that never varies counts as 0."""

    mean: Float[np.ndarray, " features"]
    scale: Float[np.ndarray, " features"]

    @classmethod
    def of(cls, pairs: PairedAnswers) -> "Standard":
        """Over the distinct answers of pairs."""
        states = pairs.states[pairs.answers()]
        deviation = states.std(axis=0, dtype=np.float64)
        return cls(states.mean(axis=0, dtype=np.float64), np.where(deviation > SMALLEST_SCALE, deviation, np.inf))


def member_weights(clusters: Shaped[np.ndarray, " pairs"], member: int, *, seed: int) -> Float[np.ndarray, " pairs"]:
    """The weights of pairs for one member of an ensemble: a draw from Exp(1) per cluster, their mean over pairs 1.

    The Bayesian bootstrap (Rubin, "The Bayesian Bootstrap", Annals of Statistics 9, 1981) over clusters of prompts:
    no pair is left out, and pairs of a prompt go together.
    """
    _, index = np.unique(clusters, return_inverse=True)
    drawn = np.random.default_rng([seed, member]).exponential(size=index.max() + 1)[index]
    return drawn / drawn.mean()


@dataclass(frozen=True)
class Design:
    """The differences of pairs under one standard, from which any of them are fitted and scored by linear heads.

    Where pairs are fewer than features, coefficients are one per fitted pair, else one per feature. Ridges are per
    feature: the penalty is ridge x features / 2 |theta|^2, which means the same for few features and for many.
    """

    differences: Float[np.ndarray, "pairs features"]
    kernel: Float[np.ndarray, "pairs pairs"] | None

    @classmethod
    def of(cls, pairs: PairedAnswers, standard: Standard) -> "Design":
        """float32 for the one large product, float64 for all that follows."""
        states = pairs.states.astype(np.float32, copy=False)
        differences = (states[pairs.first] - states[pairs.second]) / standard.scale.astype(np.float32)
        few = len(differences) <= differences.shape[1]
        return cls(differences, (differences @ differences.T).astype(np.float64) if few else None)

    def fit(
        self,
        rows: Int[np.ndarray, " fitted"],
        labels: Labels,
        ridges: Sequence[float],
        start: np.ndarray | None = None,
    ) -> Float[np.ndarray, "ridges coefficients"]:
        """The heads that minimise the loss of some pairs, whose labels these are, at each ridge."""
        penalties = [ridge * self.differences.shape[1] for ridge in ridges]
        if self.kernel is None:
            return along_ridges(by_features, self.differences[rows].astype(np.float64), labels, penalties, start)
        return along_ridges(by_pairs, self.kernel[np.ix_(rows, rows)], labels, penalties, start)

    def scores(
        self,
        coefficients: Float[np.ndarray, "heads coefficients"],
        fitted: Int[np.ndarray, " fitted"],
        rows: np.ndarray,
    ) -> Float[np.ndarray, "pairs heads"]:
        """The score differences of pairs by heads that were fitted to others."""
        design = self.differences[rows] if self.kernel is None else self.kernel[np.ix_(rows, fitted)]
        return design @ coefficients.T

    def theta(
        self, coefficients: Float[np.ndarray, "heads coefficients"], fitted: Int[np.ndarray, " fitted"]
    ) -> Float[np.ndarray, "heads features"]:
        """The heads on standardised states."""
        return coefficients if self.kernel is None else coefficients @ self.differences[fitted]


def choose_ridge(
    design: Design, rows: Int[np.ndarray, " training"], pairs: PairedAnswers, ridges: Sequence[float], *, seed: int
) -> float:
    """The ridge with the smallest loss on left-out clusters of these pairs; of a single one there is no choice.

    `pairs` are those of `rows`. With one cluster nothing can be left out: the largest ridge.
    """
    folds = min(INNER_FOLDS, len(np.unique(pairs.clusters)))
    if len(ridges) == 1 or folds < MIN_FOLDS:
        return float(max(ridges))
    fold_of = grouped_folds(pairs.clusters, folds, seed=seed)
    losses = np.zeros(len(ridges))
    for fold in range(folds):
        training, left_out = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        found = design.fit(rows[training], pairs.labels.of(training), ridges)
        scores, labels = design.scores(found, rows[training], rows[left_out]), pairs.labels.of(left_out)
        losses += [labels.loss(column) for column in scores.T]
    return float(ridges[int(losses.argmin())])


@dataclass(frozen=True)
class Heads:
    """Coefficients of the head that weighs all pairs the same, of the members, and their ridge."""

    single: Float[np.ndarray, "1 coefficients"]
    members: Float[np.ndarray, "members coefficients"]
    ridge: float


def fit_rows(
    design: Design,
    rows: Int[np.ndarray, " training"],
    pairs: PairedAnswers,
    ridges: Sequence[float],
    *,
    members: int,
    seed: int,
) -> Heads:
    """Heads of some pairs of a design (`pairs` are those of `rows`); the ridge is chosen among them.

    One member is the single head; several differ by `member_weights`.
    """
    ridge = choose_ridge(design, rows, pairs, ridges, seed=seed)
    single = design.fit(rows, pairs.labels, [ridge])
    if members == 1:
        return Heads(single, single, ridge)
    found = []
    for member in range(members):
        labels = pairs.labels.weighted(member_weights(pairs.clusters, member, seed=seed))
        found.append(design.fit(rows, labels, [ridge], start=single[0])[0])
    return Heads(single, np.stack(found), ridge)


def fit_members(
    pairs: PairedAnswers, ridges: Sequence[float], members: int, *, seed: int
) -> tuple[Float[np.ndarray, "members features"], Standard, float]:
    """theta of every member on standardised states, the standard, and the ridge."""
    standard, rows = Standard.of(pairs), np.arange(len(pairs))
    design = Design.of(pairs, standard)
    heads = fit_rows(design, rows, pairs, ridges, members=members, seed=seed)
    return design.theta(heads.members, rows), standard, heads.ridge


@dataclass(frozen=True)
class OutOfFold:
    """Score differences of every pair by heads that never saw its cluster (or, by pair, never saw it)."""

    single: Float[np.ndarray, " pairs"]
    members: Float[np.ndarray, "pairs members"]
    ridges: Float[np.ndarray, " folds"]


def cross_validate(
    pairs: PairedAnswers,
    ridges: Sequence[float],
    *,
    folds: int,
    seed: int,
    members: int = 1,
    by_pair: bool = False,
) -> OutOfFold:
    """Fits on all folds but one and scores that one, for each; standard and ridge come from the training folds.

    `by_pair` splits without regard to prompts, to show what a leak would claim: never to choose by.
    """
    split = replace(pairs, clusters=np.arange(len(pairs))) if by_pair else pairs
    fold_of = grouped_folds(split.clusters, folds, seed=seed)
    single, several, chosen = np.zeros(len(pairs)), np.zeros((len(pairs), members)), np.zeros(folds)
    for fold in range(folds):
        rows, left_out = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        training = split.of(rows)
        design = Design.of(split, Standard.of(training))
        heads = fit_rows(design, rows, training, ridges, members=members, seed=seed)
        single[left_out] = design.scores(heads.single, rows, left_out)[:, 0]
        several[left_out] = design.scores(heads.members, rows, left_out)
        chosen[fold] = heads.ridge
    return OutOfFold(single, several, chosen)


def right(margins: Float[np.ndarray, " pairs"]) -> Float[np.ndarray, " pairs"]:
    """1 where the first answer scores higher, 0 where lower, 1/2 where both score the same."""
    return (margins > 0) + 0.5 * (margins == 0)
