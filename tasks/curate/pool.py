"""The whole of `curate`, pure: sources in, the pool of prompts and the rejected rows out."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import polars as pl

from storage.errors import InputError
from storage.records import Prompt
from tasks.curate.config import CurateConfig
from tasks.curate.duplicates import cluster_ids, cluster_near_duplicates, set_aside_exact, shingles
from tasks.curate.normalise import prompt_of_row
from tasks.curate.rows import Rejection, rejected_frame
from tasks.curate.sources import read_source
from tasks.curate.split import split_by_cluster

SHOWN_EXAMPLES = 3


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
    _limit_rejections(len(prompts), rejections, config.max_rejected_fraction)
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


def _limit_rejections(good: int, rejections: list[Rejection], allowed: float) -> None:
    read = good + len(rejections)
    if not read or len(rejections) / read <= allowed:
        return
    reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(r.reason for r in rejections).most_common())
    examples = "\n".join(f"  {rejection}" for rejection in rejections[:SHOWN_EXAMPLES])
    raise InputError(
        f"{len(rejections)} of {read} rows are bad ({reasons}), above max_rejected_fraction {allowed}:\n{examples}\n"
        "correct the rows or the sources' field names, or raise curate.max_rejected_fraction"
    )


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
