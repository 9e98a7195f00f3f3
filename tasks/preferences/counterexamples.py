"""Pairs against length as a sign of quality, pure: chosen among graded answers, or made by spoiling a good one."""

import json
from collections.abc import Callable

import numpy as np
import polars as pl

from storage.fingerprints import derive_seed
from tasks.preferences.config import CounterexamplesConfig
from tasks.preferences.frames import completed, joined, pair_name, pairs_of_rows
from tasks.preferences.pairs import PROMPT_COLUMNS, Voice, written
from tasks.preferences.ranking import PAIRS_AT_ONCE, rank_answers
from tasks.preferences.ranking_config import RankingConfig

Random = np.random.Generator
# Phrases that say nothing: what padding is made of.
PHRASES = (
    "I hope this answer is helpful to you.",
    "As mentioned above, this is an important point to keep in mind.",
    "There are many aspects to consider here, and each of them matters in its own way.",
    "Please let me know if there is anything else that you would like to know.",
    "In conclusion, it all depends on the circumstances, as is so often the case.",
    "It is worth noting that this topic has been discussed by many people.",
    "Thank you for asking this interesting question.",
)
LONGER = (2.0, 3.0)
FEWEST_WORDS = 6


def counterexamples(
    answers: pl.DataFrame,
    prompts: pl.DataFrame,
    graded: pl.DataFrame,
    rules: RankingConfig,
    config: CounterexamplesConfig,
    seed: int,
) -> pl.DataFrame:
    """Unsplit `Preference` rows of source counterexample: at most `config.share` of them and `graded` together.

    `answers`, `prompts` and `rules` are those that `graded` was made of; a pair of it doesn't come again. Each kind
    (`detail`) gets the same number where there are enough. Lengths are in characters. None where the scores don't tell
    good from bad.
    """
    limit = int(config.share / (1 - config.share) * len(graded))
    if not limit or _line(answers, config.good_quantile) <= _line(answers, 1 - config.good_quantile):
        return joined([])
    found = {**_chosen(answers, prompts, graded, rules, config, seed), **_made(answers, prompts, config, limit, seed)}
    rng = np.random.default_rng(derive_seed(seed, "counterexamples"))
    shuffled = [
        frame.with_columns(place=pl.Series(rng.permutation(len(frame)), dtype=pl.Int64)) for frame in found.values()
    ]
    if not shuffled:
        return joined([])
    return joined([pl.concat(shuffled).sort("place", maintain_order=True).head(limit).sort("pair_id")])


def _chosen(
    answers: pl.DataFrame,
    prompts: pl.DataFrame,
    graded: pl.DataFrame,
    rules: RankingConfig,
    config: CounterexamplesConfig,
    seed: int,
) -> dict[str, pl.DataFrame]:
    """By kind, the pairs of graded answers that show something of length and aren't among the graded pairs."""
    answers = _few_prompts(answers, seed)
    every = RankingConfig(pairs="all", min_margin=rules.min_margin)
    ranked = rank_answers(answers.select("text", "score", group="prompt_id", answer_id="rollout_id"), every, seed)
    lengths = answers["text"].str.len_chars().cast(pl.Float64)
    high, low = _line(answers, config.good_quantile), _line(answers, 1 - config.good_quantile)
    better, worse = answers[ranked["better"]], answers[ranked["worse"]]
    ratio = lengths[ranked["better"]] / lengths[ranked["worse"]]
    kinds: dict[str, pl.Series] = {}
    if config.short_over_long is not None:
        clear = (better["score"] >= high) & (worse["score"] <= low)
        kinds["short_over_long"] = clear & (ratio <= config.short_over_long)
    if config.length_matched is not None:
        kinds["length_matched"] = (ratio - 1).abs() <= config.length_matched
    known = graded["pair_id"].implode()
    found, taken = {}, pl.Series(np.zeros(len(ranked), bool))
    for kind, marks in kinds.items():
        chosen = ranked.filter(marks & ~taken)
        taken |= marks
        frame = written(answers, chosen, prompts, Voice("counterexample")).filter(~pl.col("pair_id").is_in(known))
        found[kind] = frame.with_columns(detail=pl.lit(json.dumps({"kind": kind})))
    return found


def _few_prompts(answers: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The answers to as many prompts, drawn by seed, as have `PAIRS_AT_ONCE` pairs: more aren't needed here."""
    sizes = answers.group_by("prompt_id").len().sort("prompt_id").sample(fraction=1.0, shuffle=True, seed=seed)
    pairs = pl.col("len").cast(pl.Int64) * (pl.col("len").cast(pl.Int64) - 1) // 2
    few = sizes.filter(pairs.cum_sum() <= PAIRS_AT_ONCE).select("prompt_id")
    return answers.join(few, on="prompt_id", how="semi", maintain_order="left")


def _line(answers: pl.DataFrame, quantile: float) -> float:
    return float(np.quantile(answers["score"].to_numpy(), quantile))


def _made(
    answers: pl.DataFrame, prompts: pl.DataFrame, config: CounterexamplesConfig, limit: int, seed: int
) -> dict[str, pl.DataFrame]:
    """By kind, good answers that aren't long beside what spoiling them makes."""
    good = answers.filter(
        pl.col("score") >= _line(answers, config.good_quantile), pl.col("text").str.strip_chars() != ""
    )
    short = good.filter(pl.col("text").str.len_chars() <= pl.col("text").str.len_chars().median())
    placed = short.join(prompts.select(PROMPT_COLUMNS), on="prompt_id", how="inner", maintain_order="left")
    strangers = answers.select("prompt_id", "text").join(
        prompts.select("prompt_id", "cluster_id"), on="prompt_id", how="inner", maintain_order="left"
    )
    found: dict[str, pl.DataFrame] = {}
    for kind in config.made:
        rng = np.random.default_rng(derive_seed(seed, "made", kind))
        picked = placed[rng.permutation(len(placed))[:limit].tolist()]
        rows = []
        for row in picked.iter_rows(named=True):
            spoiled = SPOILED[kind](row["text"], _foreign(row["cluster_id"], strangers, rng), rng)
            if spoiled is not None and spoiled != row["text"]:
                rows.append(_row(row, spoiled, kind))
        found[kind] = completed(pairs_of_rows(rows))
    return found


def _row(good: dict[str, object], spoiled: str, kind: str) -> dict[str, object]:
    return {
        "pair_id": pair_name("counterexample", kind, good["rollout_id"], spoiled),
        **{name: good[name] for name in (*PROMPT_COLUMNS, "iteration")},
        "chosen_rollout_id": good["rollout_id"],
        "chosen_policy_id": good["policy_id"],
        "chosen": good["text"],
        "rejected": spoiled,
        "source": "counterexample",
        "tie": False,
        "detail": json.dumps({"kind": kind}),
    }


def _foreign(cluster_id: str, strangers: pl.DataFrame, rng: Random) -> str | None:
    """An answer to a prompt of another cluster; None where a few draws find none."""
    for place in rng.integers(len(strangers), size=8).tolist():
        row = strangers.row(place, named=True)
        if row["cluster_id"] != cluster_id and row["text"].strip():
            return str(row["text"])
    return None


def _padded(text: str, _foreign_text: str | None, rng: Random) -> str:
    """Phrases that say nothing after it, up to two to three times its length."""
    wanted = len(text) * rng.uniform(*LONGER)
    parts = [text]
    order = rng.permutation(len(PHRASES)).tolist()
    while sum(map(len, parts)) < wanted or len(parts) < 3:
        parts.append(PHRASES[order[(len(parts) - 1) % len(order)]])
    return " ".join(parts)


def _repeated(text: str, _foreign_text: str | None, rng: Random) -> str:
    """Itself two or three times."""
    return "\n\n".join([text] * int(rng.integers(2, 4)))


def _with_foreign(text: str, foreign_text: str | None, _rng: Random) -> str | None:
    """Another prompt's answer after it."""
    return None if foreign_text is None else f"{text}\n\n{foreign_text}"


def _truncated(text: str, _foreign_text: str | None, rng: Random) -> str | None:
    """Its first words, a third to two thirds of them; None of a text too short to miss them."""
    words = text.split(" ")
    if len(words) < FEWEST_WORDS:
        return None
    return " ".join(words[: max(1, int(len(words) * rng.uniform(1 / 3, 2 / 3)))]).rstrip()


SPOILED: dict[str, Callable[[str, str | None, Random], str | None]] = {
    "padded": _padded,
    "repeated": _repeated,
    "foreign": _with_foreign,
    "truncated": _truncated,
}
