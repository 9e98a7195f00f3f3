"""The whole of `curate`, pure: sources in, the pool of prompts and the rejected rows out."""

from collections.abc import Callable
from typing import Any

import polars as pl

from storage.errors import InputError
from storage.records import Prompt
from tasks._sources.rows import Rejection, limit_rejections, rejected_frame
from tasks._sources.split import split_by_cluster
from tasks.curate.config import CurateConfig
from tasks.curate.duplicates import cluster_ids, cluster_near_duplicates, set_aside_exact, shingles
from tasks.curate.normalise import prompt_of_row
from tasks.curate.sources import read_source


def build_pool(
    config: CurateConfig, seed: int, progress: Callable[[int, int, str], None] | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The `Prompt` and the `RejectedRow` frame of the configured sources.

    Raises `InputError` for an unreadable source, too many bad rows, an empty pool, or a split that can't be made.
    """
    prompts: list[dict[str, Any]] = []
    rejections: list[Rejection] = []
    for done, source in enumerate(config.sources, start=1):
        for row in read_source(source, seed):
            prompt = row if isinstance(row, Rejection) else prompt_of_row(row, source)
            if isinstance(prompt, Rejection):
                rejections.append(prompt)
            else:
                prompts.append(prompt)
        if progress is not None:
            progress(done, len(config.sources), "sources")
    limit_rejections(len(prompts), rejections, config.max_rejected_fraction, "curate")
    prompts, duplicates = set_aside_exact(prompts)
    if not prompts:
        where = ", ".join(source.path or str(source.generator) for source in config.sources)
        raise InputError(f"the prompt set is empty: {where} hold no row; add rows or correct the sources' paths")
    documents = [shingles(prompt["messages"]) for prompt in prompts]
    clusters = cluster_near_duplicates(documents, config.near_duplicate_threshold)
    names = cluster_ids([prompt["prompt_id"] for prompt in prompts], clusters)
    splits = _splits(names, config, seed)
    rows = [
        prompt | {"cluster_id": name, "split": split}
        for prompt, name, split in zip(prompts, names, splits, strict=True)
    ]
    return pl.DataFrame(rows, schema=Prompt.create_empty().schema), rejected_frame(rejections + duplicates)


def _splits(cluster_names: list[str], config: CurateConfig, seed: int) -> list[str]:
    total = len(cluster_names)
    wanted = config.eval_prompts if config.eval_prompts is not None else round(config.eval_fraction * total)
    splits = split_by_cluster(cluster_names, wanted, seed)
    held_out = splits.count("eval")
    if held_out == total:
        raise InputError(f"all {total} prompts would be held out; lower curate.eval_prompts ({wanted}) or add prompts")
    if wanted and not held_out:
        raise InputError(
            f"no prompt can be held out: every cluster of near duplicates is larger than the {wanted} wanted; "
            "raise curate.near_duplicate_threshold or the held-out share, or add prompts"
        )
    return splits
