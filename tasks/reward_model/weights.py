"""How much each member of an ensemble makes of each pair."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from storage.fingerprints import derive_seed
from tasks.reward_model.pairs import Pair


def weighed(pairs: Sequence[Pair], members: int, *, bootstrap: bool, seed: int) -> list[Pair]:
    """The pairs with a weight for each member, 1 on average over the clusters of prompts.

    Of several members each draws its weights from an exponential distribution, one a cluster: the Bayesian bootstrap
    (Rubin, Annals of Statistics 9, 1981), which varies as much as drawing clusters with replacement does, and leaves
    none out. All pairs of a cluster share a weight, since they are no independent evidence. Without `bootstrap`, and
    for one member, every weight is 1: then members differ by their heads' first weights alone.
    """
    if members == 1 or not bootstrap:
        return [replace(pair, weights=(1.0,) * members) for pair in pairs]
    names = sorted({pair.cluster_id for pair in pairs})
    drawn = np.stack(
        [
            np.random.default_rng(derive_seed(seed, "bootstrap", member)).exponential(size=len(names))
            for member in range(members)
        ],
        axis=1,
    )
    drawn /= drawn.mean(axis=0)
    by_name = {name: tuple(row) for name, row in zip(names, drawn.tolist(), strict=True)}
    return [replace(pair, weights=by_name[pair.cluster_id]) for pair in pairs]
