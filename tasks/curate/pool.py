"""The whole of `curate`, pure: sources in, the pool of prompts and the rejected rows out."""

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from storage.errors import InputError
from storage.records import Prompt
from tasks._sources.rows import Rejection, limit_rejections, rejected_frame
from tasks._sources.split import split_by_cluster
from tasks.curate.config import CurateConfig
from tasks.curate.duplicates import cluster_ids, cluster_near_duplicates, set_aside_exact, shingles
from tasks.curate.filters import TokenCounter, open_filters
from tasks.curate.mixing import left_out, limit_domains, mix
from tasks.curate.normalise import prompt_of_row
from tasks.curate.sources import Expanded, read_source

Progress = Callable[[int, int, str], None]


def build_pool(
    config: CurateConfig,
    seed: int,
    progress: Progress | None = None,
    *,
    expansions: Mapping[int, Expanded] | None = None,
    count_tokens: TokenCounter | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The `Prompt` and the `RejectedRow` frame of the configured sources.

    `expansions`: what a model wrote, by the source's position. `count_tokens` is asked where a filter bounds tokens.
    Raises `InputError` for an unreadable source, too many bad rows, an empty pool, or a split that can't be made.
    """
    prompts, rejections = _read(config, seed, progress, expansions or {})
    limit_rejections(len(prompts), rejections, config.max_rejected_fraction, "curate")
    reasons = open_filters(config.filters, count_tokens)(prompts)
    unwanted = [reason for reason in reasons if reason is not None]
    wanted = [prompt for prompt, reason in zip(prompts, reasons, strict=True) if reason is None]
    distinct, duplicates = set_aside_exact(wanted)
    if not distinct:
        where = ", ".join(source.place for source in config.sources)
        what = f"its filters leave none of {len(prompts)}" if prompts else f"{where} hold no row"
        raise InputError(f"the prompt set is empty: {what}; add rows, loosen the filters or correct the sources' paths")
    pool, out = _shared_out(_clustered(distinct, config), config, seed)
    return pool, pl.concat([rejected_frame(rejections + unwanted + duplicates), *out])


def _read(
    config: CurateConfig, seed: int, progress: Progress | None, expansions: Mapping[int, Expanded]
) -> tuple[list[dict[str, Any]], list[Rejection]]:
    """Every usable row as a prompt with the position of its source, and the bad rows."""
    prompts: list[dict[str, Any]] = []
    rejections: list[Rejection] = []
    for position, source in enumerate(config.sources):
        for row in read_source(source, seed, expansions.get(position)):
            prompt = row if isinstance(row, Rejection) else prompt_of_row(row, source)
            if isinstance(prompt, Rejection):
                rejections.append(prompt)
            else:
                prompts.append(prompt | {"source_index": position})
        if progress is not None:
            progress(position + 1, len(config.sources), "sources")
    return prompts, rejections


def _clustered(prompts: list[dict[str, Any]], config: CurateConfig) -> pl.DataFrame:
    """The prompts with the clusters of their near duplicates, not split yet."""
    documents = [shingles(prompt["messages"]) for prompt in prompts]
    clusters = cluster_near_duplicates(documents, config.near_duplicate_threshold)
    names = cluster_ids([prompt["prompt_id"] for prompt in prompts], clusters)
    schema = {
        name: dtype for name, dtype in Prompt.create_empty().schema.items() if name not in ("split", "cluster_id")
    }
    frame = pl.DataFrame(prompts, schema={**schema, "source_index": pl.Int32})
    return frame.with_columns(pl.Series("cluster_id", names, pl.String))


def _shared_out(prompts: pl.DataFrame, config: CurateConfig, seed: int) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
    """The pool by the sources' weights, split, its training part within the domains' quotas; and what that leaves out.

    Weights come before the split, so that the held-out part has the same mixture. Quotas come after it: they limit
    what is trained on.
    """
    kept = mix(prompts, config, seed)
    out = [left_out(prompts, kept, "over_weight", "the shares of the sources' weights, or max_prompts")]
    pool = prompts[kept]
    pool = pool.with_columns(split=pl.Series(_splits(pool["cluster_id"].to_list(), config, seed)))
    train, held_out = pool.filter(split="train"), pool.filter(split="eval")
    within = limit_domains(train, config.quota, seed)
    out.append(left_out(train, within, "over_quota", "the quota of its domain"))
    if config.quota:
        pool = pl.concat([train[within], held_out])
    schema = Prompt.create_empty().schema
    return pool.select(schema.names()).cast(schema), out


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
