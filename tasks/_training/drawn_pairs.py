"""Which pairs a reward model is made of, where there are more than it takes: the same for states and training."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from storage.fingerprints import derive_seed


def of_sources(preferences: pl.DataFrame, sources: Sequence[str] | None) -> pl.DataFrame:
    """The rows of these sources; None: all."""
    return preferences if sources is None else preferences.filter(pl.col("source").is_in(list(sources)))


def drawn(preferences: pl.DataFrame, split: str, limit: int | None, seed: int) -> pl.DataFrame:
    """The pairs of a split, in an order drawn by seed, `limit` at most; None: all."""
    found = preferences.filter(pl.col("split") == split).sort("pair_id")
    order = np.random.default_rng(derive_seed(seed, "sample", split)).permutation(len(found))[:limit]
    return found[order.tolist()]
