"""What the loss takes of each pair: whether it is a tie, its margin, how far its label is trusted, people's scores."""

import polars as pl

from storage.errors import InputError
from tasks._training.drawn_pairs import of_sources
from tasks.reward_model.config import RewardModelConfig

STRONGEST = 0.95  # the quantile of a source's strengths that has the whole margin: the largest may be an accident
SIDES = ("chosen", "rejected")


def with_terms(preferences: pl.DataFrame, quality: pl.DataFrame | None, config: RewardModelConfig) -> pl.DataFrame:
    """`Preference` rows of the configured sources, with `tie`, `margin` (nats, at least 0) and `smoothing` (0 to 1/2).

    The margin is `config.margin` times a pair's strength over the strongest of its source, since sources have scales
    of their own; ties and pairs without a strength have none. `quality`, a `PairQuality` frame, flips and drops
    training pairs, and adds its margins and its smoothing; held-out pairs stay as they are. Raises `InputError` where
    the loss can't take them.
    """
    chosen = of_sources(preferences, config.sources)
    tie = pl.col("tie").fill_null(False) if "tie" in chosen.columns else pl.lit(False)  # a column that came later
    strength = pl.col("strength").fill_null(0.0)
    strongest = strength.quantile(STRONGEST).over("source")
    relative = pl.when(strongest > 0).then(strength / strongest).otherwise(0.0).clip(0, 1)
    framed = chosen.with_columns(
        tie.alias("tie"),
        (config.margin * relative).alias("margin"),
        pl.lit(config.smoothing, pl.Float64).alias("smoothing"),
    )
    judged = framed if quality is None else _by_quality(framed, quality, config)
    return judged.with_columns(pl.when("tie").then(0.0).otherwise("margin").alias("margin"))


def _by_quality(framed: pl.DataFrame, quality: pl.DataFrame, config: RewardModelConfig) -> pl.DataFrame:
    if config.loss != "bradley_terry" and quality["margin"].max():
        raise InputError(
            f"pair_quality gives margins, which loss {config.loss} doesn't know; set its margins: false or choose "
            "loss: bradley_terry"
        )
    said = quality.select("pair_id", "action", pl.col("smoothing").alias("doubt"), pl.col("margin").alias("sure"))
    joined = framed.join(said, on="pair_id", how="left", maintain_order="left")
    trains = pl.col("split").cast(pl.String) == "train"
    action = pl.when(trains).then(pl.col("action").cast(pl.String).fill_null("keep")).otherwise(pl.lit("keep"))
    known = joined.with_columns(action.alias("action")).filter(pl.col("action") != "drop")
    flipped = pl.col("action") == "flip"
    pairs_of_names = [(f"{prefix}{SIDES[0]}{rest}", f"{prefix}{SIDES[1]}{rest}") for prefix, rest in FLIPPED]
    swaps = [
        pl.when(flipped).then(other).otherwise(own).alias(own)
        for names in pairs_of_names
        for own, other in (names, names[::-1])
        if own in known.columns
    ]
    doubt, sure = (pl.when(trains).then(pl.col(name).fill_null(0.0)).otherwise(0.0) for name in ("doubt", "sure"))
    return known.with_columns(
        *swaps,
        pl.max_horizontal("smoothing", doubt).alias("smoothing"),
        (pl.col("margin") + sure).alias("margin"),
    ).drop("action", "doubt", "sure")


# The columns that change places where a label is flipped: what comes before and after the side's name.
FLIPPED = (("", ""), ("", "_rollout_id"), ("", "_policy_id"), ("human_score_", ""))
