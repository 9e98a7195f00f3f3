"""Pairs from graded groups, pure: by the composite reward, one grader's scores, or a judge's verdicts on pairs."""

from typing import NamedTuple

import polars as pl

from storage.errors import InputError
from storage.fingerprints import derive_seed, text_key
from tasks.preferences.frames import completed
from tasks.preferences.ranking import rank_answers
from tasks.preferences.ranking_config import RankingConfig

ANSWER_COLUMNS = ["rollout_id", "prompt_id", "text", "policy_id", "iteration"]
PROMPT_COLUMNS = ["prompt_id", "cluster_id", "messages"]
# What a pairwise judge leaves in its grade's detail: the digest of each text that it compared this one with, and the
# result over both orders (1: won in both, 0: lost in both, 0.5: a tie, or the orders named different answers).
MET = pl.Struct({"met": pl.List(pl.Struct({"other": pl.String, "result": pl.Float64, "disagreed": pl.Boolean}))})


class Voice(NamedTuple):
    """Who prefers, as in `Preference`."""

    source: str = "grader"
    annotator: str | None = None


def answers_of(rollouts: pl.LazyFrame, scores: pl.LazyFrame, batch: pl.LazyFrame) -> pl.DataFrame:
    """The rollouts that have a score, with it, sorted by prompt and id. `scores` has `rollout_id` and `score`.

    Raises `InputError` for a rollout whose prompt is not in the batch.
    """
    graded = rollouts.select(ANSWER_COLUMNS).join(scores, on="rollout_id", how="inner").sort("prompt_id", "rollout_id")
    answers = graded.collect()
    known = batch.select("prompt_id").collect()
    strangers = answers.join(known, on="prompt_id", how="anti")
    if len(strangers):
        raise InputError(
            f"rollout {strangers['rollout_id'][0]}: its prompt {strangers['prompt_id'][0]} is not in the batch; "
            "pass the batch that it was made from"
        )
    return answers


def complete_rewards(rewards: pl.LazyFrame) -> pl.LazyFrame:
    """The composite rewards as scores: only what every grader answered."""
    return rewards.filter("complete").select("rollout_id", score="reward")


def scores_of(grades: pl.LazyFrame, grader: str) -> pl.LazyFrame:
    """One grader's scores. Raises `InputError` where no grade is its."""
    labels = grades.select(pl.col("grader").cast(pl.String).unique()).collect()["grader"].sort().to_list()
    if grader not in labels:
        raise InputError(f"preferences.grader is {grader!r}, and no such grader graded; expected one of {labels}")
    ok = (pl.col("grader").cast(pl.String) == grader) & (pl.col("status").cast(pl.String) == "ok")
    return grades.filter(ok).select("rollout_id", "score")


def graded_pairs(
    answers: pl.DataFrame, prompts: pl.DataFrame, rules: RankingConfig, seed: int, voice: Voice | None = None
) -> pl.DataFrame:
    """The unsplit `Preference` frame of `answers_of`, sorted by prompt, then margin; `strength` is the difference."""
    ranked = rank_answers(
        answers.select("text", "score", group="prompt_id", answer_id="rollout_id"), rules, derive_seed(seed, "graded")
    )
    return written(answers, ranked, prompts, voice or Voice())


def written(answers: pl.DataFrame, ranked: pl.DataFrame, prompts: pl.DataFrame, voice: Voice) -> pl.DataFrame:
    """Pairs of rows of `answers` (`better`, `worse`, `strength`, `tie`, perhaps `detail`) as a `Preference` frame."""
    better, worse = answers[ranked["better"]], answers[ranked["worse"]]
    frame = ranked.drop("better", "worse").with_columns(
        pl.Series("prompt_id", better["prompt_id"]),
        *(
            side[column].alias(f"{name}{suffix}")
            for name, side in (("chosen", better), ("rejected", worse))
            for column, suffix in (("text", ""), ("rollout_id", "_rollout_id"), ("policy_id", "_policy_id"))
        ),
        pl.Series("iteration", better["iteration"]),
        pl.lit(voice.source).alias("source"),
        pl.lit(voice.annotator, pl.String).alias("annotator"),
    )
    named = frame.with_columns(pair_id=pl.concat_str("chosen_rollout_id", pl.lit(">"), "rejected_rollout_id"))
    return completed(named.join(prompts.select(PROMPT_COLUMNS), on="prompt_id", how="inner", maintain_order="left"))


def verdicts_of(grades: pl.LazyFrame, grader: str) -> pl.DataFrame:
    """What a pairwise judge said of each pair: `rollout_id`, `other` (a text's key), `result`, `disagreed`.

    Empty where the grader left no such verdicts.
    """
    own = grades.filter(
        pl.col("grader").cast(pl.String) == grader, pl.col("detail").str.contains('"met"', literal=True)
    )
    met = pl.col("detail").str.json_decode(MET).struct.field("met")
    return own.select("rollout_id", met.alias("met")).explode("met").drop_nulls("met").unnest("met").collect()


def verdict_pairs(
    answers: pl.DataFrame,
    verdicts: pl.DataFrame,
    prompts: pl.DataFrame,
    rules: RankingConfig,
    seed: int,
    voice: Voice,
) -> pl.DataFrame:
    """A judge's pairs as an unsplit `Preference` frame: `strength` 1 for an answer that won in both orders.

    Where the two orders named different answers the pair is a tie, kept where `rules.ties` wants ties, and its detail
    says so. Of `rules` the limit holds too, drawn by seed: the margins are all alike.
    """
    keyed = answers.with_row_index("row").with_columns(key=_text_keys(answers["text"]))
    mine = keyed.select("rollout_id", "prompt_id", better="row", key="key")
    others = keyed.select("prompt_id", worse="row", other="key").unique(["prompt_id", "other"], keep="first")
    found = (
        verdicts.filter(pl.col("result") >= 0.5 if rules.ties else pl.col("result") > 0.5)
        .join(mine, on="rollout_id", how="inner")
        .join(others, on=["prompt_id", "other"], how="inner")
        .filter(pl.col("key") != pl.col("other"))
        .with_columns(low=pl.min_horizontal("key", "other"), high=pl.max_horizontal("key", "other"))
        .sort("prompt_id", "low", "high", "better")
        .unique(["prompt_id", "low", "high"], keep="first", maintain_order=True)
        .with_columns(tie=pl.col("result") == 0.5)
    )
    chosen = found.with_columns(
        strength=pl.when("tie").then(0.0).otherwise(1.0),
        detail=pl.when("disagreed").then(pl.lit('{"orders_disagreed": true}')),
        draw=pl.int_range(pl.len()).shuffle(derive_seed(seed, "verdicts")),
    )
    if rules.limit is not None:
        chosen = chosen.filter(pl.col("draw").rank("ordinal").over("prompt_id", "tie") <= rules.limit)
    ranked = chosen.sort("prompt_id", "tie", "low", "high").select("better", "worse", "strength", "tie", "detail")
    return written(answers, ranked, prompts, voice)


def _text_keys(texts: pl.Series) -> pl.Series:
    return pl.Series("key", [text_key(text) for text in texts.to_list()], dtype=pl.String)
