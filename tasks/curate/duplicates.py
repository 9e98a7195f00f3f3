"""Exact duplicates are set aside; near duplicates share a cluster, so that a split never parts them."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from tasks._maths.near_duplicates import Labels
from tasks._maths.words import Hashes

ID_BYTES = 16
TEXTS_AT_A_TIME = 4096


def chat_text(messages: Sequence[dict[str, str]]) -> str:
    """What of a chat is compared: its turns without the system message, which prompts share."""
    return " ".join(message["content"] for message in messages if message["role"] != "system")


def id_numbers(prompt_ids: Sequence[str]) -> Hashes:
    """Ids of 32 hexadecimal digits as two numbers each, (ids, 2), that sort as the ids do."""
    return np.frombuffer(bytes.fromhex("".join(prompt_ids)), ">u8").astype(np.uint64).reshape(-1, 2)


def id_names(numbers: Hashes) -> pl.Series:
    """The ids that `id_numbers` made into numbers."""
    digits = numbers.astype(">u8").tobytes().hex().encode()
    bounds = np.arange(0, len(digits) + 1, 2 * ID_BYTES)
    names = pa.LargeStringArray.from_buffers(len(numbers), pa.py_buffer(bounds), pa.py_buffer(digits))
    return pl.Series(pl.from_arrow(names))


def first_of_each(ids: Hashes) -> Labels:
    """For each id, (ids, 2), the index where it stands for the first time."""
    order = np.lexsort((ids[:, 1], ids[:, 0]))
    begins = np.ones(len(order), bool)
    begins[1:] = (ids[order][1:] != ids[order][:-1]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    return first


def smallest_of_cluster(ids: Hashes, labels: Labels, kept: NDArray[np.bool_]) -> Labels:
    """For each kept prompt the index of the smallest id in its cluster: the cluster's name. Others keep their own."""
    members = np.flatnonzero(kept)
    order = members[np.lexsort((ids[members, 1], ids[members, 0], labels[members]))]
    smallest = np.arange(len(ids))
    if len(order):
        begins = np.concatenate([[True], labels[order][1:] != labels[order][:-1]])
        smallest[order] = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    return smallest
