"""What is checked: held-out pairs with the members' scores of both answers, and what becomes of them as rewards."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Float

from tasks._maths.ensembles import aggregate
from tasks.reward_check.config import CheckedEnsemble

Rows = Float[np.ndarray, " pairs"]
Members = Float[np.ndarray, "pairs members"]
FACTS = ("pair_id", "prompt_id", "cluster_id", "chosen", "rejected", "source", "annotator", "strength", "split")
SCORES = ("human_score_chosen", "human_score_rejected")


@dataclass(frozen=True)
class Answers:
    """One side of the pairs: reward and its uncertainty (in training deviations until calibrated), length in tokens,
    people's absolute score (nan: none).
    """

    reward: Rows
    uncertainty: Rows
    length: Rows
    human: Rows


@dataclass(frozen=True)
class HeldOut:
    """Pairs, the chosen answer first. `uncertainty` is the deviation over the members of a pair's margin."""

    pairs: pl.DataFrame
    domain: np.ndarray
    chosen: Answers
    rejected: Answers
    uncertainty: Rows

    @property
    def margin(self) -> Rows:
        """Chosen less rejected."""
        return self.chosen.reward - self.rejected.reward

    @property
    def right(self) -> Rows:
        """1 where the reward model orders the pair as its source did, 0.5 where it doesn't order it."""
        return (self.margin > 0) + 0.5 * (self.margin == 0)

    @property
    def clusters(self) -> np.ndarray:
        """The near-duplicates' cluster of each pair: what intervals resample and folds keep whole."""
        return self.pairs["cluster_id"].to_numpy()

    def column(self, name: str) -> np.ndarray:
        """A column of the pairs as strings, "" where it is null."""
        return self.pairs[name].cast(pl.String).fill_null("").to_numpy()

    def __len__(self) -> int:
        return len(self.pairs)

    def with_rewards(self, chosen: Rows, rejected: Rows) -> "HeldOut":
        """The same pairs with other rewards."""
        return replace(
            self, chosen=replace(self.chosen, reward=chosen), rejected=replace(self.rejected, reward=rejected)
        )


def held_out_pairs(preferences: pl.DataFrame) -> pl.DataFrame:
    """The rows that can be right or wrong, by pair_id: without ties, and of answers that differ."""
    known = preferences.filter(~pl.col("tie").fill_null(False)) if "tie" in preferences.columns else preferences
    return known.sort("pair_id")


def held_out(
    pairs: pl.DataFrame,
    chosen: Members,
    rejected: Members,
    lengths: Float[np.ndarray, "pairs 2"],
    ensemble: CheckedEnsemble,
    domains: Mapping[str, str],
) -> HeldOut:
    """Pairs with their members' standardised scores as rewards. `domains`: prompt_id -> domain, where it is known."""
    sides = [
        Answers(*aggregate(members, ensemble.how, ensemble.strength), lengths[:, side], _scores(pairs, SCORES[side]))
        for side, members in enumerate((chosen, rejected))
    ]
    return HeldOut(
        pairs=pairs.select(*FACTS, _iteration(pairs)),
        domain=_domains(pairs, domains),
        chosen=sides[0],
        rejected=sides[1],
        uncertainty=(chosen - rejected).std(axis=1),
    )


def _iteration(pairs: pl.DataFrame) -> pl.Expr:
    """In which the answers were sampled; preferences of before don't say."""
    known = "iteration" in pairs.columns
    return pl.col("iteration") if known else pl.lit(None, pl.Int32).alias("iteration")


def _scores(pairs: pl.DataFrame, column: str) -> Rows:
    return pairs[column].cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _domains(pairs: pl.DataFrame, domains: Mapping[str, str]) -> np.ndarray:
    """By the prompt's id, else what the source's `detail` says; "" where neither knows."""
    named = pl.Series([domains.get(prompt, "") for prompt in pairs["prompt_id"]], dtype=pl.String)
    if "detail" in pairs.columns:
        told = pairs["detail"].str.json_path_match("$.domain").fill_null("")
        named = pl.select(pl.when(named == "").then(told).otherwise(named).alias("domain"))["domain"]
    return named.to_numpy()
