"""The held-out part of a large pool: what `tasks._sources.split` draws, over arrays instead of names."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from storage.errors import InputError
from storage.fingerprints import digest
from tasks._maths.near_duplicates import Labels
from tasks._maths.words import Hashes
from tasks.curate.config import CurateConfig
from tasks.curate.duplicates import id_names


def hold_out(clusters: Labels, ids: Hashes, config: CurateConfig, seed: int) -> NDArray[np.bool_]:
    """For each prompt whether it is held out. `clusters`: (prompts,) the index of the one whose id names its cluster.

    The same draw as `split_by_cluster`: clusters in the order of a hash of the seed and their name, passed over where
    one is larger than what is left. Raises `InputError` for a split that would leave nothing on one side.
    """
    total = len(clusters)
    wanted = config.eval_prompts if config.eval_prompts is not None else round(config.eval_fraction * total)
    held_out = np.zeros(total, bool)
    if wanted:
        names, of_prompt, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
        held_out = _drawn(id_names(ids[names]), sizes, wanted, seed)[of_prompt]
    if held_out.all():
        raise InputError(f"all {total} prompts would be held out; lower curate.eval_prompts ({wanted}) or add prompts")
    if wanted and not held_out.any():
        raise InputError(
            f"no prompt can be held out: every cluster of near duplicates is larger than the {wanted} wanted; "
            "raise curate.near_duplicate_threshold or the held-out share, or add prompts"
        )
    return held_out


def _drawn(names: pl.Series, sizes: NDArray[np.int64], wanted: int, seed: int) -> NDArray[np.bool_]:
    """For each cluster whether it is held out."""
    hashes = np.array([digest([seed, "split", name]) for name in names], "S32")
    chosen = np.zeros(len(names), bool)
    left = wanted
    for cluster in np.argsort(hashes):
        if sizes[cluster] <= left:
            chosen[cluster] = True
            left -= sizes[cluster]
        if left == 0:
            break
    return chosen
