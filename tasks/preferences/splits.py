"""What trains and what measures: whole clusters of prompts, and annotators and policies that never train. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from storage.errors import InputError
from storage.fingerprints import digest
from storage.records import Preference
from tasks.preferences.clusters import joined_clusters
from tasks.preferences.config import HeldOutConfig
from tasks.preferences.frames import PREFERENCE_SCHEMA, prompt_key

HASHES = 16**32


@dataclass(frozen=True)
class HeldOut:
    """Names whose pairs never train."""

    annotators: Collection[str] = ()
    policies: Collection[str] = ()


def held_out_clusters(
    cluster_ids: Sequence[str],
    eval_fraction: float,
    seed: int,
    purpose: str = "preferences",
    first: Collection[str] = frozenset(),
) -> list[str]:
    """About that share of the clusters, by a seeded hash of each name: the same in every iteration with that seed.

    Those in `first` are taken before the others, no more in all. Of several clusters at least one is held out (unless
    the share is 0) and at least one is not.
    """
    if len(cluster_ids) < 2 or eval_fraction == 0:
        return []
    ranks = {name: int(digest([seed, purpose, name]), 16) / HASHES for name in cluster_ids}
    ranked = sorted(ranks, key=lambda name: (name not in first, ranks[name]))
    below = sum(rank < eval_fraction for rank in ranks.values())
    return sorted(ranked[: min(max(below, 1), len(ranked) - 1)])


def choose_held_out(
    pairs: pl.DataFrame,
    annotators: HeldOutConfig,
    policies: HeldOutConfig,
    seed: int,
    always_trained: Collection[str] = (),
) -> HeldOut:
    """The people and the policies that are held out, where there are enough of them.

    `always_trained`: policies that never are, such as the one whose answers the reward model is to grade next.
    """
    people = pairs.filter(pl.col("source").cast(pl.String) == "human")["annotator"].drop_nulls().unique().to_list()
    ids = pl.concat([pairs["chosen_policy_id"], pairs["rejected_policy_id"]]).drop_nulls().unique().to_list()
    known = [policy for policy in ids if policy not in always_trained]
    return HeldOut(
        annotators=_some(people, annotators, seed, "annotators"), policies=_some(known, policies, seed, "policies")
    )


def _some(names: list[str], config: HeldOutConfig, seed: int, purpose: str) -> list[str]:
    if len(names) < config.minimum:
        return []
    return held_out_clusters(sorted(names), config.fraction, seed, f"preferences {purpose}")


def assign_splits(
    pairs: pl.DataFrame, eval_fraction: float, seed: int, held_out: HeldOut | None = None
) -> pl.DataFrame:
    """The pairs with their `split`, by `cluster_id`; fewer than came in where one can be in neither part.

    - A cluster whose source says `split` in its detail goes there, another one by `held_out_clusters`.
    - A cluster all of whose pairs are by held-out annotators or of held-out policies measures.
    - Of the others those with a held-out annotator's pair are held out first, as far as `eval_fraction` goes.
    - A held-out pair in a cluster that trains is left out: training on it would make it known, and measuring by it
      would part the cluster.
    """
    held_out = held_out or HeldOut()
    asked = pl.col("detail").str.json_path_match("$.split")
    person = pl.col("annotator").is_in(list(held_out.annotators)).fill_null(False)
    away = pl.any_horizontal(
        person,
        pl.col("chosen_policy_id").is_in(list(held_out.policies)).fill_null(False),
        pl.col("rejected_policy_id").is_in(list(held_out.policies)).fill_null(False),
    )
    marked = pairs.with_columns(asked=asked, away=away, person=person)
    clusters = marked.group_by("cluster_id").agg(
        asked=pl.col("asked").drop_nulls().first(),
        away=(pl.col("away") & (pl.col("asked").is_null() | (pl.col("asked") != "train"))).all(),
        person=pl.col("person").any(),
    )
    free = clusters.filter(pl.col("asked").is_null(), ~pl.col("away"))
    people = set(free.filter("person")["cluster_id"])
    drawn = held_out_clusters(free["cluster_id"].to_list(), eval_fraction, seed, first=people)
    measures = pl.col("away") | (pl.col("asked") == "eval").fill_null(False) | pl.col("cluster_id").is_in(drawn)
    sides = clusters.select("cluster_id", measures=measures)
    split = pl.when("measures").then(pl.lit("eval")).otherwise(pl.lit("train"))
    return (
        marked.join(sides, on="cluster_id", how="left", maintain_order="left")
        .with_columns(split=pl.coalesce("asked", split))
        .filter((pl.col("split") == "eval") | ~pl.col("away"))
        .select(Preference.column_names())
        .cast(PREFERENCE_SCHEMA)
    )


def refuse_leaks(pairs: pl.DataFrame, threshold: float, folder: Path) -> None:
    """Raises `InputError` naming a pair of each part whose prompts share a cluster, as near duplicates do."""
    columns = ["pair_id", "prompt_id", "cluster_id", "split"]
    marked = pairs.select(
        *columns, "chosen", "rejected", key=prompt_key(), joined=joined_clusters(pairs, threshold, folder)
    ).with_columns(pl.col("split").cast(pl.String))
    parted = marked.filter(pl.col("split").n_unique().over("joined") > 1).sort("joined", "key", "pair_id")
    if parted.is_empty():
        return
    same = parted.filter(pl.col("split").n_unique().over("joined", "key") > 1)
    chosen = same if len(same) else parted
    group = chosen.filter(pl.col("joined") == chosen["joined"][0])
    if len(same):
        group = group.filter(pl.col("key") == group["key"][0])
    train, held = (group.filter(pl.col("split") == side).row(0, named=True) for side in ("train", "eval"))
    raise InputError(
        f"a leak between splits: pair {train['pair_id']} trains and pair {held['pair_id']} measures, and "
        f"{_shared(train, held)}; give both to one part (preferences.sources.N.split), or let their clusters decide"
    )


def _shared(train: dict[str, str], held: dict[str, str]) -> str:
    if train["key"] == held["key"]:
        answers = {train["chosen"], train["rejected"]} & {held["chosen"], held["rejected"]}
        return "they answer the same prompt" + (" with the same text" if answers else "")
    if train["cluster_id"] == held["cluster_id"]:
        return f"their prompts share the cluster {train['cluster_id']}, as near duplicates do"
    return f"their prompts {train['prompt_id']} and {held['prompt_id']} are near duplicates"
