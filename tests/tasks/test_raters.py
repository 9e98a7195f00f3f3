"""Agreement against the published examples, and what holds for any ratings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tasks._maths.raters import agreement_share, cohens_kappa, fleiss_kappa, krippendorffs_alpha

N = np.nan
# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve units.
KRIPPENDORFF = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
        [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
    ]
)
# Fleiss 1971's kind of table, as often printed: ten subjects, fourteen raters, five categories.
FLEISS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]


def test_krippendorffs_example():
    assert krippendorffs_alpha(KRIPPENDORFF) == pytest.approx(0.743, abs=5e-4)
    assert krippendorffs_alpha(KRIPPENDORFF, "interval") == pytest.approx(0.849, abs=5e-4)


def test_fleiss_example():
    ratings = np.stack([np.repeat(np.arange(5.0), row) for row in FLEISS], axis=1)
    assert fleiss_kappa(ratings) == pytest.approx(0.210, abs=5e-4)
    uneven = ratings.copy()
    uneven[0, 0] = N
    assert fleiss_kappa(uneven) is None


def test_cohens_kappa_of_a_table():
    first = np.repeat([1.0, 1, 0, 0], [20, 5, 10, 15])
    second = np.repeat([1.0, 0, 1, 0], [20, 5, 10, 15])
    assert cohens_kappa(first, second) == pytest.approx(0.4)
    assert cohens_kappa(np.append(first, N), np.append(second, 1.0)) == pytest.approx(0.4)
    assert cohens_kappa(np.array([1.0, N]), np.array([N, 1.0])) is None
    assert cohens_kappa(np.ones(3), np.ones(3)) is None


def test_nothing_to_compare():
    alone = np.array([[0.0, 1.0, N], [N, N, 2.0]])
    assert agreement_share(alone) is None and krippendorffs_alpha(alone) is None and fleiss_kappa(alone) is None
    assert krippendorffs_alpha(np.zeros((0, 0))) is None and agreement_share(np.zeros((0, 0))) is None


@given(
    arrays(np.float64, st.tuples(st.integers(2, 4), st.integers(1, 8)), elements=st.sampled_from([0.0, 1.0, 2.0, N]))
)
def test_what_holds_for_any_ratings(ratings):
    alpha, share = krippendorffs_alpha(ratings), agreement_share(ratings)
    assert alpha is None or alpha <= 1
    assert share is None or 0 <= share <= 1
    # Who rated what in which order is nothing that agreement knows of.
    shuffled = ratings[::-1, ::-1]
    assert krippendorffs_alpha(shuffled) == pytest.approx(alpha) if alpha is not None else True
    if share == 1.0 and alpha is not None:
        assert alpha == pytest.approx(1)
    if alpha is not None:
        assert krippendorffs_alpha(np.vstack([ratings, np.full((1, ratings.shape[1]), N)])) == pytest.approx(alpha)
