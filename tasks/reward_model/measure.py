"""What held-out pairs say of a reward model: of the ensemble, of its members, and of how they differ."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Float

from storage.fingerprints import derive_seed
from tasks._maths.intervals import bootstrap_mean
from tasks.reward_model.pairs import Pair

PairScores = Float[np.ndarray, "pairs 2 members"]


def standardised(
    scores: PairScores, mean: Float[np.ndarray, " members"], std: Float[np.ndarray, " members"]
) -> PairScores:
    """Each member's deviations from the mean of its training answers."""
    return (scores - mean) / std


def heldout_metrics(pairs: Sequence[Pair], scores: PairScores, seed: int) -> dict[str, float]:
    """Accuracy with its 95 % interval over clusters of prompts, of the members' mean; nothing without held-out pairs.

    `scores` are standardised; equal scores count half, ties are left out. Of an ensemble also each member's accuracy,
    and its diversity: the share of pairs that a member orders otherwise than the mean, the mean correlation of two
    members' margins, and the uncertainty of a margin (deviation over members, with k).
    """
    told = np.array([not pair.tie for pair in pairs], dtype=bool)
    if not told.any():
        return {}
    margins = (scores[:, 0] - scores[:, 1])[told]
    clusters = np.array([pair.cluster_id for pair in pairs])[told]
    together = margins.mean(axis=1)
    interval = bootstrap_mean(_right(together), clusters, seed=derive_seed(seed, "accuracy"))
    found = {
        "heldout_accuracy": interval.estimate,
        "heldout_accuracy_low": interval.low,
        "heldout_accuracy_high": interval.high,
        "heldout_margin": float(together.mean()),
    }
    return found | (_diversity(margins, together) if margins.shape[1] > 1 else {})


def _diversity(margins: Float[np.ndarray, "pairs members"], together: Float[np.ndarray, " pairs"]) -> dict[str, float]:
    members = margins.shape[1]
    accuracies = _right(margins).mean(axis=0)
    found = {f"heldout_accuracy_member/{member}": float(value) for member, value in enumerate(accuracies)}
    found["heldout_accuracy_members_mean"] = float(accuracies.mean())
    found["member_disagreement"] = float((np.sign(margins) != np.sign(together)[:, None]).mean())
    found["member_uncertainty"] = float(margins.std(axis=1).mean())
    if len(margins) > 2 and (margins.std(axis=0) > 0).all():
        correlations = np.corrcoef(margins.T)[np.triu_indices(members, 1)]
        found["member_correlation"] = float(correlations.mean())
    return found


def _right(margins: np.ndarray) -> np.ndarray:
    return (margins > 0) + 0.5 * (margins == 0)


def scored_frame(pairs: Sequence[Pair], scores: PairScores) -> pl.DataFrame:
    """`ScoredPair` rows: the mean of the members' standardised scores."""
    ids = pl.Series("pair_id", [pair.pair_id for pair in pairs], dtype=pl.String)
    means = scores.mean(axis=2)
    return pl.DataFrame({"pair_id": ids, "chosen_score": means[:, 0], "rejected_score": means[:, 1]})
