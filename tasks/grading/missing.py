"""What a group does whose slow grades are missing: never a mix of complete and incomplete rewards inside a group."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from tasks._maths.imputation import impute
from tasks.grading.steps import weighted_mean

FAST_ONLY = "fast_only"
IMPUTED = "imputed"


class Table(NamedTuple):
    """Rollouts by graders: scores (NaN where there is none), and which graders are slow."""

    scores: Float[np.ndarray, "rows graders"]
    propensity: Float[np.ndarray, "rows graders"]
    slow: Bool[np.ndarray, " graders"]
    weights: Float[np.ndarray, " graders"]
    groups: Int[np.ndarray, " rows"]


class Filled(NamedTuple):
    """The scores as the composite takes them, which rows take only the instant graders, and the filled columns."""

    scores: Float[np.ndarray, "rows graders"]
    fast_only: Bool[np.ndarray, " rows"]
    filled: dict[int, Float[np.ndarray, " rows"]]


def hold(table: Table) -> Filled:
    """A rollout without every grade has no reward."""
    return Filled(table.scores, np.zeros(len(table.scores), dtype=bool), {})


def fast_only(table: Table) -> Filled:
    """Where a member of a group lacks a slow grade, the whole group takes the instant graders."""
    return Filled(table.scores, lacking(table), {})


def imputed(table: Table) -> Filled:
    """Where a slow grader's scores are missing, all of its scores are the corrected predictions of `impute`.

    Predicted from the weighted mean of the instant graders; rows without all of theirs stay as they are, and so does
    a grader of which nothing was observed. The propensity is what the grade's detail says, else the share observed.
    """
    scores, filled = table.scores.copy(), {}
    weighed = [index for index in np.flatnonzero(~table.slow) if table.weights[index] > 0]
    fast = weighted_mean([table.scores[:, index] for index in weighed], [float(table.weights[i]) for i in weighed])
    usable = ~np.isnan(table.scores[:, ~table.slow]).any(axis=1)
    for index in np.flatnonzero(table.slow):
        seen = usable & ~np.isnan(table.scores[:, index])
        if not seen.any() or seen.sum() == usable.sum():
            continue
        share = seen.sum() / usable.sum()
        stated = table.propensity[:, index]
        propensity = np.where(np.isnan(stated), share, stated)
        scores[usable, index] = impute(
            fast[usable], table.scores[usable, index], seen[usable], propensity[usable], table.groups[usable]
        )
        filled[int(index)] = scores[:, index]
    return Filled(scores, np.zeros(len(scores), dtype=bool), filled)


def lacking(table: Table) -> Bool[np.ndarray, " rows"]:
    """The rows of groups in which a slow grade is missing."""
    missing = np.isnan(table.scores[:, table.slow]).any(axis=1)
    return np.bincount(table.groups, missing)[table.groups] > 0


MISSING = {"hold": hold, FAST_ONLY: fast_only, "impute": imputed}
