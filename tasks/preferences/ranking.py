"""Answers with scores -> which of them are compared, pure and vectorised."""

from collections.abc import Iterator

import numpy as np
import polars as pl

from storage.fingerprints import derive_seed
from tasks._maths.rankings import Which, ranked_pairs
from tasks.preferences.ranking_config import RankingConfig

# Pairs of a ranking that are in memory at once: a group's number of pairs grows with the square of its answers.
PAIRS_AT_ONCE = 4_000_000
WHICH: dict[str, Which] = {"widest": "all", "all": "all", "adjacent": "adjacent", "best_worst": "best_worst"}


def rank_answers(answers: pl.DataFrame, rules: RankingConfig, seed: int) -> pl.DataFrame:
    """The pairs to learn from: `better` and `worse` (rows of `answers`), `strength` (difference of score), `tie`.

    `answers` has `group`, `answer_id`, `text` and `score`; only answers of one group are compared. Answers with equal
    texts are no pair, and two texts are compared once in a group, at their widest margin. Pairs are sorted by group,
    then margin, widest first, then the ids. Ties, where wanted, come after a group's preferences.
    """
    ordered = answers.with_row_index("row").sort("group", "answer_id")
    coded = ordered.select("row", "score", _code("group"), _code("text"), _code("answer_id"))
    parts = [_pairs(part, rules) for part in _parts(coded)]
    found = pl.concat(parts).with_columns(draw=_draws(sum(map(len, parts)), derive_seed(seed, "pairs")))
    limited = found.filter(_within_limit(rules)) if rules.limit is not None else found
    return limited.sort("group", "tie", "rank").select("better", "worse", "strength", "tie")


def _code(column: str) -> pl.Expr:
    return (pl.col(column).rank("dense").cast(pl.Int64) - 1).alias(column)


def _parts(coded: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Whole groups, together of about `PAIRS_AT_ONCE` pairs; one empty part where there is no answer."""
    groups = coded["group"].to_numpy()
    sizes = np.bincount(groups) if len(groups) else np.zeros(1, np.int64)
    part_of = np.cumsum(sizes * (sizes - 1) // 2) // PAIRS_AT_ONCE
    bounds = np.concatenate([[0], np.cumsum(np.bincount(part_of, weights=sizes))]).astype(np.int64)
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if last > first or len(bounds) == 2:
            yield coded.slice(first, last - first)


def _pairs(coded: pl.DataFrame, rules: RankingConfig) -> pl.DataFrame:
    """All pairs that the rules allow, each with its `rank` within the group."""
    columns = {name: coded[name].to_numpy() for name in coded.columns}
    better, worse, margin = ranked_pairs(columns["group"], columns["score"], WHICH[rules.pairs])
    texts = np.sort(np.stack([columns["text"][better], columns["text"][worse]]), axis=0)
    tie = margin <= rules.tie_margin if rules.ties else np.zeros(len(margin), bool)
    wanted = (texts[0] != texts[1]) & (tie | (margin >= rules.min_margin))
    frame = pl.DataFrame(
        {
            "group": columns["group"][better],
            "better": columns["row"][better],
            "worse": columns["row"][worse],
            "strength": margin,
            "tie": tie,
            "low": texts[0],
            "high": texts[1],
            "better_id": columns["answer_id"][better],
            "worse_id": columns["answer_id"][worse],
        }
    ).filter(wanted)
    ordered = frame.sort(["group", "strength", "better_id", "worse_id"], descending=[False, True, False, False]).unique(
        ["group", "low", "high"], keep="first", maintain_order=True
    )
    return ordered.with_columns(rank=pl.int_range(pl.len()).over("group", "tie"))


def _draws(count: int, seed: int) -> pl.Series:
    return pl.Series("draw", np.random.default_rng(seed).random(count))


def _within_limit(rules: RankingConfig) -> pl.Expr:
    """Of `all` pairs some drawn by seed, else the first; preferences and ties count apart."""
    place = pl.col("draw").rank("ordinal").over("group", "tie") - 1 if rules.pairs == "all" else pl.col("rank")
    return place < rules.limit
