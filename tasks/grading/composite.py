"""From a rollout's grades to its reward, pure: the composite's steps over columns of scores."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from storage.errors import InputError, StageFailed
from storage.records import PROPENSITY
from tasks.grading.composite_config import CompositeConfig, Gate
from tasks.grading.config import GraderConfig
from tasks.grading.missing import FAST_ONLY, IMPUTED, MISSING, Table, lacking
from tasks.grading.steps import Scored, run_steps

# The key of a grade's detail that holds the probability with which it was asked for; a slow grader's budget sets it.


class _Columns(NamedTuple):
    """The grades as arrays: rows by graders, rows sorted by rollout."""

    rollout_ids: pl.Series
    table: Table
    passed: np.ndarray
    tokens: np.ndarray
    domains: np.ndarray


class _Part(NamedTuple):
    """Rollouts of one domain that take the same graders, and the composite that holds for them."""

    rows: np.ndarray
    graders: list[int]
    config: CompositeConfig
    domain: str


def composite(
    grades: pl.LazyFrame,
    graders: Sequence[GraderConfig],
    config: CompositeConfig | None = None,
    rollouts: pl.LazyFrame | None = None,
) -> pl.DataFrame:
    """The `Reward` frame, sorted by rollout: the scores through the composite's steps, by default their weighted mean.

    A reward is complete when every grader answered ok, or when `config.missing` makes up for the slow ones; otherwise
    it is null, never a partial sum. `components` holds each grader's score and, unless the composite is the default,
    what each step added; a group that took only its instant graders says `fast_only` 1. `passed` is null without
    judges, and false where one of them says no or nothing; a group that lacks slow grades has only its instant judges.

    `rollouts` holds `rollout_id`, `group_id`, `tokens`, `domain` and may be left out for the default.
    """
    config = config or CompositeConfig()
    if rollouts is None and not config.is_default:
        raise ValueError("a composite with steps needs the rollouts' groups, lengths and domains")
    columns = _columns(grades, graders, config, rollouts)
    filled = MISSING[config.missing](columns.table)
    reward = np.full(len(columns.rollout_ids), np.nan)
    terms: dict[str, np.ndarray] = {}

    def note(name: str, rows: np.ndarray, values: Any) -> None:
        terms.setdefault(name, np.full(len(reward), np.nan))[rows] = values

    for part in _parts(columns, filled.scores, filled.fast_only, graders, config):
        combined = run_steps(_scored(columns, filled.scores, graders, part), part.config.of_domain(part.domain)[0])
        reward[part.rows] = combined.reward
        for name, values in combined.terms.items() if not config.is_default else ():
            note(name, part.rows, values)
    for index, values in filled.filled.items():
        note(f"{graders[index].label}/{IMPUTED}", np.arange(len(reward)), values)
    if filled.fast_only.any():
        note(FAST_ONLY, np.flatnonzero(filled.fast_only), 1.0)
    shown = {grader.label: columns.table.scores[:, index] for index, grader in enumerate(graders)} | terms
    value = pl.Series("reward", reward, pl.Float64).fill_nan(None)
    return pl.DataFrame(
        [columns.rollout_ids, value, _components(shown, len(reward)), value.is_not_null().alias("complete")]
    ).with_columns(_passed(columns, graders, config))


def _columns(
    grades: pl.LazyFrame, graders: Sequence[GraderConfig], config: CompositeConfig, rollouts: pl.LazyFrame | None
) -> _Columns:
    ok = (pl.col("status").cast(pl.String) == "ok").fill_null(False)
    wanted = [pl.col("rollout_id"), pl.col("grader").cast(pl.String), pl.when(ok).then("score").alias("score")]
    if _reads_verdicts(config, graders):
        wanted.append(pl.col("passed"))
    if config.missing == "impute":
        stated = pl.col("detail").str.json_path_match(f"$.{PROPENSITY}").cast(pl.Float64)
        wanted.append(stated.alias(PROPENSITY))
    long = grades.select(wanted)
    known = long.collect_schema().names()
    wide = long.group_by("rollout_id").agg(
        pl.col(name).filter(pl.col("grader") == grader.label).first().alias(f"{name} {index}")
        for name in ("score", "passed", PROPENSITY)
        if name in known
        for index, grader in enumerate(graders)
    )
    found = wide.sort("rollout_id").collect()
    if rollouts is not None:
        found = found.join(_facts(rollouts), on="rollout_id", how="left", maintain_order="left")
        _refuse_strangers(found)
    return _as_arrays(found, graders, config)


def _facts(rollouts: pl.LazyFrame) -> pl.DataFrame:
    group = pl.col("group_id").rank("dense").cast(pl.Int64) - 1
    return rollouts.select("rollout_id", group.alias("group"), "tokens", "domain").collect()


def _refuse_strangers(found: pl.DataFrame) -> None:
    strangers = found.filter(pl.col("group").is_null())
    if len(strangers):
        raise InputError(f"grade of {strangers['rollout_id'][0]}: no such rollout; pass the rollouts that were graded")


def _as_arrays(found: pl.DataFrame, graders: Sequence[GraderConfig], config: CompositeConfig) -> _Columns:
    def matrix(name: str) -> np.ndarray:
        columns = [f"{name} {index}" for index in range(len(graders))]
        if not set(columns) <= set(found.columns):
            return np.full((len(found), len(graders)), np.nan)
        return found.select(pl.col(columns).cast(pl.Float64).fill_null(float("nan"))).to_numpy()

    rows = len(found)
    scores, propensity, says = matrix("score"), matrix(PROPENSITY), matrix("passed")
    _check_propensity(propensity, found["rollout_id"])
    for index, grader in enumerate(graders):
        if grader.pass_score is not None:
            with np.errstate(invalid="ignore"):
                says[:, index] = scores[:, index] >= grader.pass_score
    table = Table(
        scores=scores,
        propensity=propensity,
        slow=np.array([grader.latency == "slow" for grader in graders]),
        weights=np.array([grader.weight for grader in graders], dtype=np.float64),
        groups=found["group"].to_numpy() if "group" in found.columns else np.arange(rows),
    )
    return _Columns(
        rollout_ids=found["rollout_id"],
        table=table,
        passed=np.nan_to_num(says, nan=0.0) > 0,
        tokens=found["tokens"].to_numpy() if "tokens" in found.columns else np.zeros(rows, dtype=np.int64),
        domains=found["domain"].to_numpy() if config.domains else np.full(rows, "", dtype=object),
    )


def _check_propensity(propensity: np.ndarray, rollout_ids: pl.Series) -> None:
    wrong = np.flatnonzero((~np.isnan(propensity) & ~((propensity > 0) & (propensity <= 1))).any(axis=1))
    if len(wrong):
        raise InputError(
            f"grade of {rollout_ids[int(wrong[0])]}: {PROPENSITY} in its detail is {np.nanmin(propensity[wrong[0]])}, "
            "expected the probability with which it was asked for: above 0, at most 1"
        )


def _reads_verdicts(config: CompositeConfig, graders: Sequence[GraderConfig]) -> bool:
    """Whether some grader's own `passed` decides anything."""
    if any(grader.judge and grader.pass_score is None for grader in graders):
        return True
    steps = [*config.steps, *(step for own in config.domains.values() for step in own.steps or ())]
    return any(isinstance(step, Gate) and step.at_least is None for step in steps)


def _parts(
    columns: _Columns,
    scores: np.ndarray,
    fast_only: np.ndarray,
    graders: Sequence[GraderConfig],
    config: CompositeConfig,
) -> Iterator[_Part]:
    """Complete rollouts, by domain and by which graders count. Whatever a step takes over a batch is of one part."""
    everyone = list(range(len(graders)))
    instant = [index for index in everyone if graders[index].latency != "slow"]
    slow = {grader.label for grader in graders if grader.latency == "slow"}
    judges = any(graders[index].judge for index in instant)
    domains = sorted(set(config.domains) & set(columns.domains)) if config.domains else []
    for domain in [*domains, None]:
        here = columns.domains == domain if domain is not None else ~np.isin(columns.domains, domains)
        for only_fast, chosen in ((False, everyone), (True, instant)):
            mine = here & (fast_only == only_fast)
            rows = np.flatnonzero(mine & ~np.isnan(scores[:, chosen]).any(axis=1))
            if len(rows):
                mine_config = config.without(slow.__contains__, judges) if only_fast else config
                yield _Part(rows, chosen, mine_config, domain or "")


def _scored(columns: _Columns, scores: np.ndarray, graders: Sequence[GraderConfig], part: _Part) -> Scored:
    _, changed = part.config.of_domain(part.domain)
    chosen = [(index, graders[index]) for index in part.graders]
    return Scored(
        scores={grader.label: scores[part.rows, index] for index, grader in chosen},
        weights={grader.label: changed.get(grader.label, grader.weight) for _, grader in chosen},
        passed={grader.label: columns.passed[part.rows, index] for index, grader in chosen},
        judges=[grader.label for _, grader in chosen if grader.judge],
        groups=columns.table.groups[part.rows],
        tokens=columns.tokens[part.rows],
    )


def _components(shown: dict[str, np.ndarray], rows: int) -> pl.Series:
    """The named values of each rollout, without those it has none of, in the order of `shown`."""
    parts = [
        pl.DataFrame({"row": np.arange(rows), "value": values})
        .filter(pl.col("value").is_not_nan())
        .with_columns(pl.lit(name).alias("name"), pl.lit(place).alias("place"))
        for place, (name, values) in enumerate(shown.items())
    ]
    listed = (
        pl.concat(parts)
        .sort("row", "place")
        .group_by("row", maintain_order=True)
        .agg(pl.struct("name", "value").alias("components"))
    )
    every = pl.DataFrame({"row": np.arange(rows)}).join(listed, on="row", how="left", maintain_order="left")
    return every["components"].fill_null([])


def _passed(columns: _Columns, graders: Sequence[GraderConfig], config: CompositeConfig) -> pl.Series:
    """All judges' verdicts; of the instant judges alone in a group that lacks slow grades, unless it is held."""
    judges = [index for index, grader in enumerate(graders) if grader.judge]
    instant = [index for index in judges if graders[index].latency != "slow"]
    found = _all_pass(columns, judges)
    if config.missing == "hold":
        return found
    frame = pl.DataFrame({"found": found, "alone": _all_pass(columns, instant), "lacks": lacking(columns.table)})
    return frame.select(pl.when("lacks").then("alone").otherwise("found").alias("passed"))["passed"]


def _all_pass(columns: _Columns, judges: list[int]) -> pl.Series:
    """Null without judges."""
    if not judges:
        return pl.repeat(None, len(columns.passed), dtype=pl.Boolean, eager=True).alias("passed")
    return pl.Series("passed", np.asarray(columns.passed[:, judges].all(axis=1)), dtype=pl.Boolean)


def grade_metrics(grades: pl.LazyFrame, rewards: pl.DataFrame) -> dict[str, float]:
    """Mean, spread and completeness of the rewards; mean score, pass rate and failures per grader."""
    complete = rewards.filter("complete")["reward"]
    metrics = {
        "complete_fraction": len(complete) / max(len(rewards), 1),
        "failed": 0.0,
        **_present({"passed_fraction": rewards["passed"].mean()}),
        **_present({"reward_mean": complete.mean(), "reward_std": complete.std()}),
    }
    for row in _by_grader(grades).iter_rows(named=True):
        named = {f"score/{row['grader']}_mean": row["score"], f"score/{row['grader']}_passed": row["passed"]}
        metrics |= _present(named)
        metrics["failed"] += row["failed"]
    return metrics


def refuse_failures(grades: pl.LazyFrame, max_failed_fraction: float) -> None:
    """Raises `StageFailed` with the first failure when a grader failed on too large a share of the rollouts."""
    for row in _by_grader(grades).iter_rows(named=True):
        if row["failed"] > max_failed_fraction * row["rows"]:
            raise StageFailed(
                f"grader {row['grader']} failed on {row['failed']} of {row['rows']} rollouts, above "
                f"grading.max_failed_fraction {max_failed_fraction}; the first: {row['failure']}"
            )


def _by_grader(grades: pl.LazyFrame) -> pl.DataFrame:
    status = pl.col("status").cast(pl.String)
    failed = status == "failed"
    return (
        grades.group_by("grader")
        .agg(
            (failed | (status == "ok")).sum().alias("rows"),
            pl.col("score").mean(),
            pl.col("passed").mean(),
            failed.sum().alias("failed"),
            pl.col("detail").filter(failed).first().alias("failure"),
        )
        .sort("grader")
        .collect()
    )


def _present(values: dict[str, object]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
