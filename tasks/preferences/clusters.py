"""Clusters of prompts over all origins of pairs: what must not be parted by a split."""

from pathlib import Path

import numpy as np
import polars as pl

from tasks._maths.near_duplicates import Clusters, Labels, ShingleIndex
from tasks._maths.words import hashed_words
from tasks.preferences.frames import prompt_key, prompt_text

TEXTS_AT_A_TIME = 4096


def joined_clusters(pairs: pl.DataFrame, threshold: float, folder: Path) -> pl.Series:
    """The cluster of each pair's prompt; near duplicates, equal chats and prompts of one `cluster_id` share one.

    Near duplicates are prompts whose word 3-grams have a Jaccard similarity of at least `threshold`, as curate finds
    them (`folder` holds its files meanwhile). A cluster is called after the smallest `cluster_id` among its imported
    prompts, which are the same in every iteration, else among all: so a split by name stays as it is from one
    iteration to the next, unless a new prompt joins two clusters.
    """
    prompts = pairs.select(
        "prompt_id", "cluster_id", key=prompt_key(), text=prompt_text(), imported=pl.col("iteration").is_null()
    )
    nodes = prompts.unique(["prompt_id", "cluster_id", "key"], keep="first", maintain_order=True)
    if nodes.is_empty():
        return pl.Series("cluster_id", [], dtype=pl.String)
    clusters = Clusters(_near_duplicates(nodes["text"].to_list(), threshold, folder))
    for column in ("prompt_id", "cluster_id", "key"):
        clusters.join(_first_with_same(nodes[column]), np.arange(len(nodes)))
    names = _names(nodes.with_columns(label=clusters.labels))
    keys = ["prompt_id", "cluster_id", "key"]
    named = prompts.select(keys).join(names, on=keys, how="left", maintain_order="left")
    return named["name"].rename("cluster_id")


def _near_duplicates(texts: list[str], threshold: float, folder: Path) -> Labels:
    index = ShingleIndex(threshold, folder)
    for first in range(0, len(texts), TEXTS_AT_A_TIME):
        index.add(hashed_words(texts[first : first + TEXTS_AT_A_TIME]))
    return index.clusters(np.ones(len(texts), dtype=bool))


def _first_with_same(column: pl.Series) -> Labels:
    """For each row the first one with the same value."""
    _, first, inverse = np.unique(column.rank("dense").to_numpy(), return_index=True, return_inverse=True)
    return np.asarray(first[inverse], dtype=np.int64)


def _names(nodes: pl.DataFrame) -> pl.DataFrame:
    imported = pl.col("cluster_id").filter("imported").min()
    name = pl.coalesce(imported, pl.col("cluster_id").min())
    return nodes.select("prompt_id", "cluster_id", "key", name=name.over("label"))
