"""Where generation went: from rollouts to what trained, and how hard the prompts were, from all rollouts.

Filtering's own metrics where the artifact has them; of older artifacts what their tables tell cheaply.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from storage.artifacts import Artifact

Made = Mapping[str, Artifact]
Steps = Mapping[int, Made]
EVEN = 1e-6
KEPT, INCOMPLETE = "kept", "incomplete"
RATES = {"prompt_id": pl.String, "graded": pl.Int64, "rate": pl.Float64, "deviation": pl.Float64, "high": pl.Boolean}


@dataclass(frozen=True)
class Spending:
    """`rows`: numbers per iteration, None where nothing tells them. `funnel`: what was left of the newest iteration's
    rollouts after each step, the first being what was generated. `rates`: iteration -> its prompts' pass rates.
    """

    rows: list[dict[str, Any]]
    funnel: list[tuple[str, int]]
    rates: dict[int, pl.DataFrame]


def spending(steps: Steps, decisions: pl.DataFrame) -> Spending:
    """All of it; `decisions` counts the ledgers (`iteration, rule, count`)."""
    rates = {iteration: prompt_rates(made) for iteration, made in steps.items() if "rollouts" in made}
    rates = {iteration: frame for iteration, frame in rates.items() if len(frame)}
    rows = [iteration_spending(k, made, rates.get(k)) for k, made in steps.items() if "rollouts" in made]
    return Spending(rows, funnel(steps, decisions), rates)


def prompt_rates(made: Made) -> pl.DataFrame:
    """`prompt_id, graded, rate, deviation, high` of each prompt's graded training rollouts, before any filter.

    Of an iteration's rounds the steps that join them are read (`rollouts`, `grading`), never those of a round.
    The rate is the share that passed where every rollout has a verdict, else the mean reward. `deviation` is that of
    the rewards; `high` whether their mean lies in the upper half: of [0, 1], or of the range that they take beyond it.
    """
    sampled, rewarded = made.get("rollouts"), made.get("rewards") or made.get("grading")
    if sampled is None or rewarded is None or not _has(rewarded, "rewards"):
        return pl.DataFrame(schema=RATES)
    rewards = rewarded.scan("rewards").select("rollout_id", "reward", "passed").filter(pl.col("reward").is_not_null())
    joined = sampled.scan("rollouts").select("rollout_id", "prompt_id").join(rewards, on="rollout_id")
    found = (
        joined.group_by("prompt_id")
        .agg(
            graded=pl.len().cast(pl.Int64),
            mean=pl.col("reward").mean(),
            deviation=pl.col("reward").std(ddof=0),
            passed=pl.col("passed").mean(),
            unclear=pl.col("passed").null_count(),
            lowest=pl.col("reward").min(),
            highest=pl.col("reward").max(),
        )
        .collect(engine="streaming")
    )
    low, high = pl.min_horizontal(pl.col("lowest").min(), 0.0), pl.max_horizontal(pl.col("highest").max(), 1.0)
    rate = pl.when((pl.col("unclear") == 0).all()).then("passed").otherwise("mean")
    return found.with_columns(rate=rate, high=pl.col("mean") >= (low + high) / 2).select(list(RATES))


def iteration_spending(iteration: int, made: Made, rates: pl.DataFrame | None) -> dict[str, Any]:
    """One iteration's numbers: rollouts, groups and tokens.

    The pass rate is that of the first samples where prompts were screened by them: the rest is of chosen prompts.
    """
    filtering = made.get("filtering")
    metrics = filtering.metrics if filtering else {}
    even = rates.filter(pl.col("deviation") <= EVEN) if rates is not None else None
    groups = len(rates) if rates is not None else None
    high = int(even["high"].sum()) if even is not None else None
    low = len(even) - int(even["high"].sum()) if even is not None else None
    tokens, kept_tokens = made["rollouts"].metrics.get("tokens"), _kept_tokens(filtering)
    saved = None if tokens is None or kept_tokens is None else tokens - kept_tokens
    return {
        "iteration": iteration,
        "generated": made["rollouts"].manifest.tables["rollouts"].rows,
        "graded": int(rates["graded"].sum()) if rates is not None else None,
        "kept": _kept(filtering),
        "groups": groups,
        "even_high": high,
        "even_low": low,
        "zero_variance_fraction": metrics.get("zero_variance_fraction", _share(even, groups)),
        "effective_groups": metrics.get("effective_groups", None if even is None else (groups or 0) - len(even)),
        "distinct_fraction": metrics.get("distinct_fraction"),
        "pass_rate": _pass_rate(made.get("select"), rates),
        "tokens_generated": metrics.get("tokens_generated", tokens),
        "tokens_kept": metrics.get("tokens_kept", kept_tokens),
        "tokens_saved": metrics.get("tokens_saved", saved),
    }


def funnel(steps: Steps, decisions: pl.DataFrame) -> list[tuple[str, int]]:
    """What was left of the newest filtered iteration's rollouts: all, graded, and after each rule in its order."""
    if decisions.is_empty():
        return []
    newest = int(decisions["iteration"].max())  # type: ignore[arg-type]
    counts = dict(decisions.filter(iteration=newest).select("rule", "count").iter_rows())
    left = sum(counts.values())
    stages = [("generated", left)]
    left -= counts.get(INCOMPLETE, 0)
    stages.append(("graded", left))
    configured = steps[newest]["filtering"].manifest.config.get("rules", [])
    names = [each["rule"] for each in configured]
    for rule in dict.fromkeys([*names, *sorted(set(counts) - {KEPT, INCOMPLETE, *names})]):
        left -= counts.get(rule, 0)
        stages.append((f"after {rule}", left))
    return [*stages, (KEPT, counts.get(KEPT, 0))]


def _has(artifact: Artifact, table: str) -> bool:
    return table in artifact.manifest.tables


def _share(part: pl.DataFrame | None, whole: int | None) -> float | None:
    return len(part) / whole if part is not None and whole else None


def _pass_rate(selected: Artifact | None, rates: pl.DataFrame | None) -> float | None:
    if selected is not None and "first_pass_rate" in selected.metrics:
        return selected.metrics["first_pass_rate"]
    return float(rates["rate"].mean()) if rates is not None else None  # type: ignore[arg-type]


def _kept(filtering: Artifact | None) -> int | None:
    if filtering is None or not _has(filtering, "ledger"):
        return None
    return int(filtering.scan("ledger").select(pl.col("kept").sum()).collect().item())


def _kept_tokens(filtering: Artifact | None) -> float | None:
    if filtering is None or "tokens_kept" in filtering.metrics or not _has(filtering, "trajectories"):
        return filtering.metrics.get("tokens_kept") if filtering else None
    tokens = filtering.scan("trajectories").select(pl.col("token_ids").list.len().sum())
    return float(tokens.collect(engine="streaming").item() or 0)
