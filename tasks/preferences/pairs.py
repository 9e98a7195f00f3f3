"""Pairs from graded groups, pure: widest margin first, split by cluster of the prompts, never by pair."""

import polars as pl

from storage.errors import InputError
from storage.fingerprints import digest
from storage.records import Preference
from tasks.preferences.config import PreferencesConfig

HASHES = 16**32
GROUP = ["prompt_id", "rollout_id", "text", "reward"]


def pairs_of(
    rollouts: pl.LazyFrame, rewards: pl.LazyFrame, batch: pl.LazyFrame, config: PreferencesConfig, seed: int
) -> pl.DataFrame:
    """The `Preference` frame of one iteration, sorted by prompt, then margin; `strength` is the reward margin.

    Only rollouts with a complete reward count; two answers with the same text are no pair. Raises `InputError`
    for a rollout whose prompt is not in the batch.
    """
    graded = (
        rollouts.select("rollout_id", "prompt_id", "text")
        .join(rewards.filter("complete").select("rollout_id", "reward"), on="rollout_id", how="inner")
        .select(GROUP)
    )
    _refuse_strangers(graded, batch)
    prompts = batch.select("prompt_id", "cluster_id", "messages")
    pairs = _widest(graded, config).join(prompts, on="prompt_id", how="inner").collect()
    held_out = held_out_clusters(pairs["cluster_id"].unique().to_list(), config.eval_fraction, seed)
    split = pl.when(pl.col("cluster_id").is_in(held_out)).then(pl.lit("eval")).otherwise(pl.lit("train"))
    nothing = [pl.lit(None, pl.String).alias("annotator")]
    nothing += [pl.lit(None, pl.Float64).alias(f"human_score_{side}") for side in ("chosen", "rejected")]
    return (
        pairs.with_columns(
            pl.concat_str("chosen_rollout_id", pl.lit(">"), "rejected_rollout_id").alias("pair_id"),
            pl.lit("grader").alias("source"),
            split.alias("split"),
            *nothing,
        )
        .sort(["prompt_id", "strength", "pair_id"], descending=[False, True, False])
        .select(Preference.column_names())
        .cast({"source": Preference.create_empty().schema["source"], "split": pl.Enum(["train", "eval"])})
    )


def held_out_clusters(cluster_ids: list[str], eval_fraction: float, seed: int) -> list[str]:
    """About that share of the clusters, by a seeded hash of each name: the same in every iteration with that seed.

    Of several clusters at least one is held out (unless the share is 0) and at least one is not.
    """
    if len(cluster_ids) < 2 or eval_fraction == 0:
        return []
    ranks = {name: int(digest([seed, "preferences", name]), 16) / HASHES for name in cluster_ids}
    ranked = sorted(ranks, key=lambda name: ranks[name])
    below = sum(rank < eval_fraction for rank in ranks.values())
    return sorted(ranked[: min(max(below, 1), len(ranked) - 1)])


def pair_metrics(pairs: pl.DataFrame) -> dict[str, float]:
    """Pairs, held-out pairs, prompts with a pair and the mean margin."""
    margin = pairs["strength"].mean()
    return {
        "pairs": float(len(pairs)),
        "eval_pairs": float((pairs["split"] == "eval").sum()),
        "prompts": float(pairs["prompt_id"].n_unique()),
        **({"margin_mean": float(margin)} if isinstance(margin, float) else {}),
    }


def _widest(graded: pl.LazyFrame, config: PreferencesConfig) -> pl.LazyFrame:
    better = graded.rename({"rollout_id": "chosen_rollout_id", "text": "chosen", "reward": "better"})
    worse = graded.rename({"rollout_id": "rejected_rollout_id", "text": "rejected", "reward": "worse"})
    return (
        better.join(worse, on="prompt_id", how="inner")
        .with_columns((pl.col("better") - pl.col("worse")).alias("strength"))
        .filter(pl.col("strength") >= config.min_margin, pl.col("chosen") != pl.col("rejected"))
        .sort(["strength", "chosen_rollout_id", "rejected_rollout_id"], descending=[True, False, False])
        .group_by("prompt_id", maintain_order=True)
        .head(config.pairs_per_prompt)
    )


def _refuse_strangers(graded: pl.LazyFrame, batch: pl.LazyFrame) -> None:
    strangers = graded.join(batch, on="prompt_id", how="anti").head(1).collect()
    if len(strangers):
        raise InputError(
            f"rollout {strangers['rollout_id'][0]}: its prompt {strangers['prompt_id'][0]} is not in the batch; "
            "pass the batch that it was made from"
        )
