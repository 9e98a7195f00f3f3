"""From rollouts and rewards to what trains and the ledger, pure."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from storage.errors import InputError, StageFailed
from storage.records import LedgerEntry, Trajectory
from tasks._maths.advantages import ADVANTAGES, per_component, soft_overlong
from tasks.filtering.config import FilteringConfig, OverlongConfig
from tasks.filtering.evidence import Evidence
from tasks.filtering.features import DIGEST, SIGNATURE, measure
from tasks.filtering.graded import Graded, judged
from tasks.filtering.rules import INCOMPLETE, KEPT, TRAINED, apply_rules, features_of

TRAINED_COLUMNS = ["rollout_id", "prompt_id", "policy_id", "prompt_token_ids", "token_ids", "logprobs", "sampling"]
DECIDED_COLUMNS = [
    "rollout_id", "group_id", "iteration", "tokens", "output", "reward", "graded", "complete", "passed",
]  # fmt: skip
FRAME_ROWS = 65_536


def decide(
    batches: Iterable[pl.DataFrame],
    graded: Graded,
    config: FilteringConfig,
    *,
    earlier: pl.DataFrame | None = None,
    iteration: int | None = None,
) -> pl.DataFrame:
    """One row per rollout, in their order: `reward`, `advantage`, `weight`, `group_id` and the ledger's columns.

    `batches` hold the rollouts' `MEASURED_COLUMNS`, `earlier` the `OutputSignature` rows of earlier nights with
    how many nights ago each was (`night`); ages are
    counted from `iteration`, by default the newest rollout's. The baseline of a group is taken from all of its
    complete rollouts, also those that a rule drops: conditioning it on the survivors biases it (arXiv 2601.08521,
    theorem 1). Raises `InputError` for rewards of other rollouts.
    """
    measured = measure(batches, features_of(config.rules))
    rows = measured.hstack(judged(measured.select("rollout_id"), graded, config).get_columns())
    newest = rows["iteration"].max() if iteration is None else iteration
    rows = rows.with_columns((pl.lit(newest, pl.Int32) - pl.col("iteration")).clip(lower_bound=0).alias("age"))
    ruled = rows.with_columns(graded="reward").hstack(_ruled(rows, config, earlier).get_columns())
    stored = (SIGNATURE, DIGEST) if config.stores_signatures else ()
    keep = [*DECIDED_COLUMNS, *(name for name in (*stored, "components") if name in rows.columns)]
    # The rules saw the reward as graded: length alone doesn't make an even group worth training on.
    decided = _punish_overlong(ruled.select(*keep, *RULED_COLUMNS), config.overlong)
    return decided.with_columns(pl.Series("advantage", advantages(decided, config), pl.Float64))


RULED_COLUMNS = ["kept", "rule", "value", "threshold", "weight"]


def _ruled(rows: pl.DataFrame, config: FilteringConfig, earlier: pl.DataFrame | None) -> pl.DataFrame:
    """What the rules say of every row; those without a complete reward they don't see: it is `incomplete`."""
    complete = rows["complete"].to_numpy()
    codes = group_codes(rows)
    everything = Evidence(rows, codes, _count(codes), earlier)
    evidence = everything.rows(np.flatnonzero(complete))
    found = apply_rules(evidence, config.rules)
    names = pl.Enum(list(dict.fromkeys([KEPT, INCOMPLETE, TRAINED, *(rule.kind for rule in config.rules)])))
    at = pl.Series("at", np.cumsum(complete) - 1, pl.Int64).set(pl.Series(~complete), None)
    return found.select(pl.all().gather(at)).select(
        (pl.col("rule") == KEPT).fill_null(False).alias("kept"),
        pl.col("rule").cast(pl.String).cast(names).fill_null(pl.lit(INCOMPLETE, names)),
        # As a flag: the rollout has no complete reward.
        pl.when(pl.Series(complete)).then("value").otherwise(1.0).alias("value"),
        pl.col("threshold"),
        pl.col("weight").fill_null(1.0),
    )


def group_codes(rows: pl.DataFrame) -> Int[np.ndarray, " rows"]:
    """The groups numbered from 0."""
    return np.unique(rows["group_id"].to_physical().to_numpy(), return_inverse=True)[1]


def _count(codes: Int[np.ndarray, " rows"]) -> int:
    return int(codes.max(initial=-1)) + 1


def drop_trained(decided: pl.DataFrame, trained: Sequence[pl.LazyFrame]) -> pl.DataFrame:
    """The decisions, those that keep a rollout of a group that trained before turned into the rule `trained`."""
    before = pl.concat([each.select("group_id") for each in trained]).unique().collect()["group_id"]
    again = pl.col("kept") & pl.col("group_id").cast(pl.String).is_in(before.implode())
    return decided.with_columns(
        (pl.col("kept") & ~again).alias("kept"),
        pl.when(again).then(pl.lit(TRAINED, decided.schema["rule"])).otherwise("rule").alias("rule"),
    )


def advantages(decided: pl.DataFrame, config: FilteringConfig) -> Float[np.ndarray, " rows"]:
    """The advantage of each rollout that its group's baseline is taken from; NaN for the others."""
    compared: Bool[np.ndarray, " rows"] = decided["complete" if config.baseline == "all" else "kept"].to_numpy()
    taken = np.full(len(decided), np.nan)
    graded = decided if compared.all() else decided.filter(compared)
    groups = group_codes(graded)
    if config.advantage == "per_component":
        taken[compared] = per_component(*_components(graded, config.component_weights), groups)
    else:
        taken[compared] = ADVANTAGES[config.advantage](graded["reward"].to_numpy(), groups)
    return taken


def _components(graded: pl.DataFrame, weights: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Every grader's score per row, and the graders' weights: 1 where none is given."""
    scores = graded.select("rollout_id", "components").explode("components").unnest("components")
    wide = scores.pivot("name", index="rollout_id", values="value", maintain_order=True)
    names = sorted(wide.columns[1:])
    return wide.select(names).to_numpy(), np.array([weights.get(name, 1.0) for name in names])


def _punish_overlong(decided: pl.DataFrame, config: OverlongConfig | None) -> pl.DataFrame:
    if config is None:
        return decided
    punishment = soft_overlong(decided["tokens"].to_numpy(), config.max_tokens, config.buffer_tokens)
    return decided.with_columns(pl.col("reward") + pl.Series(punishment))


def ledger_frames(decided: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The `LedgerEntry` frames: every rollout once."""
    yield from decided.select(LedgerEntry.column_names()).iter_slices(FRAME_ROWS)


def trajectory_frames(batches: Iterable[pl.DataFrame], decided: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The `Trajectory` frames of the kept rollouts, in their order, one per batch that has some.

    `batches` hold the `TRAINED_COLUMNS` of the rollouts in the order of `decided`. `age` is counted from the newest
    rollout. Raises `InputError` when a kept rollout was sampled at temperature 0: it has no distribution to train.
    """
    start, newest = 0, decided["iteration"].max()
    age = (pl.lit(newest, pl.Int32) - pl.col("iteration")).alias("age")
    added = decided.select("kept", "group_id", "reward", "advantage", "weight", "passed", age, id="rollout_id")
    for batch in batches:
        part = added.slice(start, len(batch))
        start += len(batch)
        if not batch["rollout_id"].equals(part["id"]):
            raise StageFailed("the rollouts came in another order than they were decided on; run the stage again")
        rows = batch.filter(part["kept"]).hstack(part.filter("kept").drop("id", "kept").get_columns())
        if len(rows):
            yield _trained(rows)


def _trained(rows: pl.DataFrame) -> pl.DataFrame:
    temperature = pl.col("sampling").str.json_path_match("$.temperature").cast(pl.Float64).alias("temperature")
    trained = rows.with_columns(temperature, pl.col("group_id").cast(pl.String)).select(Trajectory.column_names())
    if (trained["temperature"] <= 0).any():
        raise InputError("rollouts sampled at temperature 0 can't train a policy; set rollouts.temperature above 0")
    return trained
