"""From rollouts and rewards to what trains and the ledger, pure."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from storage.errors import InputError
from storage.records import LedgerEntry, Trajectory
from tasks._maths.advantages import ADVANTAGES, per_component, soft_overlong
from tasks.filtering.config import FilteringConfig, OverlongConfig
from tasks.filtering.rules import KEPT, TRAINED, apply_rules

DECIDING_COLUMNS = ["rollout_id", "prompt_id", "iteration"]
TRAINED_COLUMNS = ["rollout_id", "prompt_id", "policy_id", "prompt_token_ids", "token_ids", "logprobs", "sampling"]


def decide(rollouts: pl.LazyFrame, rewards: pl.LazyFrame, config: FilteringConfig) -> pl.DataFrame:
    """One row per rollout, in their order: `reward`, `advantage`, `group_id` and the ledger's columns.

    The baseline of a group is taken from all of its complete rollouts, also those that a rule drops: conditioning
    it on the survivors biases it (arXiv 2601.08521, theorem 1). Raises `InputError` for rewards of other rollouts.
    """
    groups = rollouts.select(
        *DECIDING_COLUMNS,
        pl.col("finish_reason").cast(pl.String),
        pl.col("prompt_id").alias("group_id"),
        pl.col("token_ids").list.len().alias("tokens"),
    )
    known = rewards.select("rollout_id", "reward", "complete", "components", "passed")
    strangers = known.join(groups, on="rollout_id", how="anti").head(1).collect()
    if len(strangers):
        raise InputError(f"reward of {strangers['rollout_id'][0]}: no such rollout; pass the rewards of these rollouts")
    joined = groups.join(known, on="rollout_id", how="left", maintain_order="left")
    # The rules see the reward as graded: length alone doesn't make an even group worth training on.
    decided = _punish_overlong(apply_rules(joined, config.rules), config.overlong).collect()
    return decided.with_columns(pl.Series("advantage", advantages(decided, config), pl.Float64))


def drop_trained(decided: pl.DataFrame, trained: Sequence[pl.LazyFrame]) -> pl.DataFrame:
    """The decisions, those that keep a rollout of a group that trained before turned into the rule `trained`."""
    before = pl.concat([each.select("group_id") for each in trained]).unique().collect()["group_id"]
    again = pl.col("kept") & pl.col("group_id").is_in(before.implode())
    return decided.with_columns(
        (pl.col("kept") & ~again).alias("kept"),
        pl.when(again).then(pl.lit(TRAINED)).otherwise("rule").alias("rule"),
    )


def advantages(decided: pl.DataFrame, config: FilteringConfig) -> np.ndarray:
    """The advantage of each complete rollout within its group; NaN for the others."""
    complete = decided["complete"].fill_null(False).to_numpy()
    taken = np.full(len(decided), np.nan)
    graded = decided.filter(complete)
    groups = graded["group_id"].rank("dense").to_numpy()
    if config.advantage == "per_component":
        taken[complete] = per_component(*_components(graded, config.component_weights), groups)
    else:
        taken[complete] = ADVANTAGES[config.advantage](graded["reward"].to_numpy(), groups)
    return taken


def _components(graded: pl.DataFrame, weights: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Every grader's score per row, and the graders' weights: 1 where none is given."""
    scores = graded.select("rollout_id", "components").explode("components").unnest("components")
    wide = scores.pivot("name", index="rollout_id", values="value", maintain_order=True)
    names = sorted(wide.columns[1:])
    return wide.select(names).to_numpy(), np.array([weights.get(name, 1.0) for name in names])


def _punish_overlong(joined: pl.LazyFrame, config: OverlongConfig | None) -> pl.LazyFrame:
    if config is None:
        return joined
    punishment = pl.col("tokens").map_batches(
        lambda tokens: pl.Series(soft_overlong(tokens.to_numpy(), config.max_tokens, config.buffer_tokens)),
        return_dtype=pl.Float64,
    )
    return joined.with_columns(pl.col("reward") + punishment)


def ledger_of(decided: pl.DataFrame) -> pl.DataFrame:
    """The `LedgerEntry` frame: every rollout once."""
    return decided.select(LedgerEntry.column_names())


def trajectories_of(rollouts: pl.LazyFrame, decided: pl.DataFrame, iteration: int) -> pl.DataFrame:
    """The `Trajectory` frame of the kept rollouts, in their order. `age` is counted from `iteration`.

    Raises `InputError` when a kept rollout was sampled at temperature 0: it has no distribution to train.
    """
    kept = decided.lazy().filter("kept")
    age = (pl.lit(iteration) - pl.col("iteration")).cast(pl.Int32).alias("age")
    columns = kept.select("rollout_id", "group_id", "reward", "advantage", pl.lit(1.0).alias("weight"), age, "passed")
    temperature = pl.col("sampling").str.json_path_match("$.temperature").cast(pl.Float64).alias("temperature")
    trained = (
        rollouts.select(TRAINED_COLUMNS)
        .join(columns, on="rollout_id", how="inner", maintain_order="left")
        .with_columns(temperature)
        .select(Trajectory.column_names())
        .collect(engine="streaming")
    )
    if not trained.filter(pl.col("temperature") <= 0).is_empty():
        raise InputError("rollouts sampled at temperature 0 can't train a policy; set rollouts.temperature above 0")
    return trained


def filter_metrics(decided: pl.DataFrame) -> dict[str, float]:
    """Kept and dropped rollouts by rule, groups without variance, and the spread of the kept advantages."""
    counts = dict(decided.group_by("rule").len().iter_rows())
    no_variance = decided.filter(pl.col("rule") == "no_variance")
    spread = decided.filter("kept")["advantage"].std(ddof=0)
    dropped = {f"dropped_{rule}": float(count) for rule, count in sorted(counts.items()) if rule != KEPT}
    return {
        "kept": float(counts.get(KEPT, 0)),
        "kept_fraction": counts.get(KEPT, 0) / max(len(decided), 1),
        "groups": float(decided["group_id"].n_unique()),
        "groups_without_variance": float(no_variance["group_id"].n_unique()),
        **({"advantage_std": float(spread)} if isinstance(spread, float) else {}),
        **dropped,
    }
