"""The shares of sources and domains in the pool. Nothing is repeated: what is too much is left out.

Which prompts stay follows from the seed and their ids alone, not from their order. Near duplicates stand back: a
cluster's second prompt is taken when every cluster of that source or domain had its first.
"""

import hashlib
from collections.abc import Mapping
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import polars as pl

from storage.errors import InputError
from tasks.curate.config import OTHER_DOMAINS, CurateConfig

KEY_BYTES = 8


def mix(prompts: pl.DataFrame, config: CurateConfig, seed: int) -> list[int]:
    """The rows that the sources' weights and `max_prompts` keep, in their order: of the whole pool, before it is split.

    `prompts` has the columns prompt_id, cluster_id and source_index. Raises `InputError` for a weighted source
    without a prompt.
    """
    sizes = dict.fromkeys(range(len(config.sources)), 0) | _sizes(prompts, "source_index")
    weights = {index: source.weight for index, source in enumerate(config.sources) if source.weight is not None}
    if weights:
        for index in weights:
            if not sizes[index]:
                raise InputError(
                    f"curate.sources.{index} ({config.sources[index].place}) has a weight and no prompt is left of it; "
                    "add rows, loosen the filters, or take it out"
                )
        return _drawn(prompts, "source_index", _by_weight(sizes, weights, config), seed)
    if config.max_prompts is None or len(prompts) <= config.max_prompts:
        return list(range(len(prompts)))
    return _drawn(prompts.with_columns(whole=pl.lit(0)), "whole", {0: config.max_prompts}, seed)


def limit_domains(prompts: pl.DataFrame, quota: Mapping[str, int | float], seed: int) -> list[int]:
    """The rows of the training part that the domains' quotas keep, in their order.

    `prompts` has the columns prompt_id, cluster_id and domain. Raises `InputError` for shares that can't be kept.
    """
    if not quota:
        return list(range(len(prompts)))
    sizes = _sizes(prompts, "domain")
    return _drawn(prompts, "domain", domain_counts(sizes, quota), seed)


def divided(total: int, sizes: Mapping[int, int], weights: Mapping[int, float]) -> dict[int, int]:
    """How many of each source make a pool of `total`, in proportion to the weights, none more than there are.

    What a scarce source lacks goes to the others in proportion to theirs. Whole numbers by the largest remainder.
    """
    exact = {index: Fraction(weight) for index, weight in weights.items()}
    counts = {index: 0 for index in weights}
    open_, left = set(weights), min(total, sum(sizes[index] for index in weights))
    while open_:
        share = Fraction(left) / sum(exact[index] for index in open_)
        scarce = {index for index in open_ if share * exact[index] > sizes[index]}
        if not scarce:
            break
        counts |= {index: sizes[index] for index in scarce}
        left -= sum(sizes[index] for index in scarce)
        open_ -= scarce
    wanted = {index: share * exact[index] for index in open_}
    counts |= {index: floor(part) for index, part in wanted.items()}
    rest = left - sum(counts[index] for index in open_)
    by_remainder = sorted(open_, key=lambda index: (floor(wanted[index]) - wanted[index], index))
    return counts | {index: counts[index] + 1 for index in by_remainder[:rest]}


def domain_counts(sizes: Mapping[str, int], quota: Mapping[str, int | float]) -> dict[str, int]:
    """How many prompts of each domain the quotas allow: the largest pool in which every share holds.

    A share q of a domain among T others means at most q T / (1 - q) prompts of it; with several, the total is
    (prompts of the domains below their share) / (1 - sum of the shares of those above).
    """
    limits = {domain: quota.get(domain, quota.get(OTHER_DOMAINS)) for domain in sizes}
    counts = {
        domain: min(size, limit) if isinstance(limit := limits[domain], int) else size for domain, size in sizes.items()
    }
    shares = {domain: Fraction(str(limit)) for domain, limit in limits.items() if isinstance(limit, float)}
    above: set[str] = set()
    while True:
        below = sum(count for domain, count in counts.items() if domain not in above)
        taken = sum((shares[domain] for domain in above), Fraction(0))
        if above and (taken >= 1 or not below):
            raise InputError(
                f"curate.quota: {_written(quota)} leaves no prompt: the shares of its {len(above)} domains "
                f"make {float(taken):g} and no other has a prompt; raise them to 1, or limit by whole numbers"
            )
        total = below / (1 - taken)
        more = {domain for domain in shares.keys() - above if counts[domain] > shares[domain] * total}
        if not more:
            return counts | {domain: floor(shares[domain] * total) for domain in above}
        above |= more


def _by_weight(sizes: Mapping[int, int], weights: Mapping[int, float], config: CurateConfig) -> dict[int, int]:
    most = config.max_prompts if config.max_prompts is not None else sum(sizes.values())
    if config.scarce_sources == "limit":
        whole = sum(map(Fraction, weights.values()))
        most = min(most, floor(min(sizes[index] * whole / Fraction(weight) for index, weight in weights.items())))
    return divided(most, sizes, weights)


def _drawn(prompts: pl.DataFrame, group: str, counts: Mapping[Any, int], seed: int) -> list[int]:
    """So many rows of each group, in their order."""
    keys = np.fromiter((_key(name, seed) for name in prompts["prompt_id"]), dtype=np.uint64, count=len(prompts))
    limits = pl.DataFrame({group: list(counts), "limit": list(counts.values())}, schema_overrides={"limit": pl.Int64})
    ranked = (
        prompts.select(group, "cluster_id", "prompt_id")
        .with_row_index("index")
        .with_columns(key=pl.Series(keys))
        .join(limits.cast({group: prompts.schema[group]}), on=group, how="left")
        .sort("key", "prompt_id")
        .with_columns(turn=pl.int_range(pl.len()).over(group, "cluster_id"))
        .sort("turn", maintain_order=True)
    )
    kept = ranked.filter(pl.int_range(pl.len()).over(group) < pl.col("limit"))
    return list(kept["index"].sort().to_list())


def _key(prompt_id: str, seed: int) -> int:
    digest = hashlib.blake2b(prompt_id.encode(), digest_size=KEY_BYTES, key=f"mix-{seed}".encode())
    return int.from_bytes(digest.digest(), "little")


def _sizes(prompts: pl.DataFrame, group: str) -> dict[Any, int]:
    return dict(prompts.group_by(group).len().sort(group).iter_rows())


def _written(quota: Mapping[str, int | float]) -> str:
    return ", ".join(f"{domain}: {limit}" for domain, limit in quota.items())
