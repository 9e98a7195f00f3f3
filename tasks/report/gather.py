"""From artifacts to what the page says: small frames and plain numbers, aggregated from lazy scans."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from storage.artifacts import Artifact
from storage.fingerprints import derive_seed
from tasks._maths.reward_curve import CurveFit, fit_curve
from tasks.report.advice import Advice, Evidence, advise
from tasks.report.config import ReportConfig
from tasks.report.reward_models import RewardModels, reward_models
from tasks.report.samples import Sample, side_by_side
from tasks.report.spending import Spending, spending

History = Mapping[str, Artifact]
Steps = dict[int, dict[str, Artifact]]


@dataclass(frozen=True)
class Content:
    """All that the page shows. A list or frame is empty where no step of the history tells it."""

    title: str
    iterations: list[int]
    evaluations: list[dict[str, Any]]
    rewards: list[dict[str, Any]]
    reward_histogram: pl.DataFrame
    length_histogram: pl.DataFrame
    rollouts: list[dict[str, Any]]
    decisions: pl.DataFrame
    seconds: pl.DataFrame
    training: pl.DataFrame
    reward_models: list[dict[str, Any]]
    graders: list[dict[str, Any]]
    agreement: list[dict[str, Any]]
    samples: list[Sample]
    provenance: list[dict[str, Any]]
    spending: Spending
    difficulty: pl.DataFrame
    curve_points: list[tuple[float, float]]
    curve: CurveFit | None
    advice: list[Advice]
    honesty: RewardModels


def gather(history: History, config: ReportConfig) -> Content:
    """Everything that the page shows, of whichever steps the history has (keys `00001.rollouts`).

    Tables of rollouts are only aggregated: no stage's rows are held in memory.
    """
    steps = by_iteration(history)
    # Where graders are slow, `rewards` holds what trained; `grading` only what the instant ones say.
    settled = {k: {**made, "grading": made["rewards"]} if "rewards" in made else made for k, made in steps.items()}
    campaigns = {artifact.manifest.campaign for artifact in history.values()} - {None}
    judged, sampled, rewarded = evaluations(steps), _metrics(steps, "rollouts"), _metrics(settled, "grading")
    decided = decisions(steps)
    spent = spending(settled, decided)
    points = curve_points(judged, spent.rows)
    curve = reward_curve(points)
    models = _metrics(steps, "reward_model")
    return Content(
        title=config.title or ", ".join(sorted(str(name) for name in campaigns)) or "Post-training",
        iterations=sorted(steps),
        evaluations=judged,
        rewards=rewarded,
        reward_histogram=histogram(_scans(settled, "grading", "rewards", pl.col("reward")), config.bins),
        length_histogram=histogram(
            _scans(steps, "rollouts", "rollouts", pl.col("token_ids").list.len()), config.bins, whole=True
        ),
        rollouts=sampled,
        decisions=decided,
        seconds=seconds(steps),
        training=training(steps),
        reward_models=models,
        graders=newest_rows(settled, "grader_summary"),
        agreement=newest_rows(settled, "grader_agreement"),
        samples=side_by_side(steps, config.samples, config.answers),
        provenance=provenance(steps),
        spending=spent,
        difficulty=histogram({k: frame.lazy().select(value="rate") for k, frame in spent.rates.items()}, config.bins),
        curve_points=points,
        curve=curve,
        advice=advise(Evidence(spent.rows, rewarded, judged, sampled, models, curve)),
        honesty=reward_models(steps, config.gold),
    )


def by_iteration(history: History) -> Steps:
    """Iteration -> step -> artifact, iterations ascending, steps in the order in which they were made."""
    steps: Steps = {}
    ordered = sorted(history.items(), key=lambda item: (item[0].partition(".")[0], item[1].manifest.started_at))
    for key, artifact in ordered:
        iteration, _, step = key.partition(".")
        steps.setdefault(int(iteration), {})[step] = artifact
    return steps


def evaluations(steps: Steps) -> list[dict[str, Any]]:
    """The metrics of each evaluation with its iteration, its policy, and whether it used the first one's prompts."""
    found: list[dict[str, Any]] = []
    first: set[str] | None = None
    for iteration, made in steps.items():
        artifact = made.get("evaluation")
        if artifact is None:
            continue
        policy, prompts = "", set()
        if "evaluation" in artifact.manifest.tables:
            judged = artifact.scan("evaluation").select("prompt_id", "policy_id").collect()
            policy, prompts = next(iter(judged["policy_id"]), ""), set(judged["prompt_id"])
        first = prompts if first is None else first
        found.append({**artifact.metrics, "iteration": iteration, "policy": policy, "same_prompts": prompts == first})
    return found


def curve_points(judged: Sequence[Mapping[str, Any]], spent: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Training rollouts up to each evaluation and its score, of the evaluations on the first one's prompts.

    Iterations before the first that the history holds count as many rollouts as that one.
    """
    generated = {row["iteration"]: float(row["generated"]) for row in spent}
    if not generated:
        return []
    first = min(generated)
    before = (first - 1) * generated[first]
    return [
        (before + sum(count for k, count in generated.items() if k <= row["iteration"]), row["mean_score"])
        if row["iteration"] >= first
        else (0.0, row["mean_score"])
        for row in judged
        if row["same_prompts"] and "mean_score" in row
    ]


def reward_curve(points: Sequence[tuple[float, float]]) -> CurveFit | None:
    """ScaleRL's curve through the points; None where they are too few. The noise of its intervals has a fixed seed."""
    if not points:
        return None
    compute, reward = (np.array(values) for values in zip(*points, strict=True))
    return fit_curve(compute, reward, seed=derive_seed(0, "reward curve"))


def histogram(scans: Mapping[int, pl.LazyFrame], bins: int, *, whole: bool = False) -> pl.DataFrame:
    """`iteration, middle, width, share` of the column `value` of each scan, in bins that all share.

    `whole` makes the bins a whole number wide, for counts.
    """
    empty = pl.DataFrame(schema={"iteration": pl.Int64, "middle": pl.Float64, "width": pl.Float64, "share": pl.Float64})
    value = pl.col("value")
    finite = {iteration: scan.filter(value.is_finite()) for iteration, scan in scans.items()}
    ranges = [
        scan.select(low=value.min(), high=value.max()).collect(engine="streaming").row(0) for scan in finite.values()
    ]
    known = [(low, high) for low, high in ranges if low is not None]
    if not known:
        return empty
    low, high = min(low for low, _ in known), max(high for _, high in known)
    width = (high - low) / bins or 1.0 / bins
    if whole:
        low, width = low - 0.5, float(-(-(high - low + 1) // bins))
    position = ((value - low) / width).floor().clip(0, bins - 1)
    counted = [
        scan.group_by(bin=position)
        .agg(count=pl.len())
        .collect(engine="streaming")
        .join(pl.DataFrame({"bin": [float(each) for each in range(bins)]}), on="bin", how="right")
        .sort("bin")
        .select(
            iteration=pl.lit(iteration, pl.Int64),
            middle=low + (pl.col("bin") + 0.5) * width,
            width=pl.lit(width),
            share=pl.col("count").fill_null(0) / pl.col("count").sum().clip(1),
        )
        for iteration, scan in finite.items()
    ]
    return pl.concat([empty, *counted])


def decisions(steps: Steps) -> pl.DataFrame:
    """`iteration, rule, count` of every ledger: rollouts kept, and dropped by which rule."""
    counted = [
        artifact.scan("ledger")
        .group_by("rule")
        .agg(count=pl.len().cast(pl.Int64))
        .collect(engine="streaming")
        .select(pl.lit(iteration, pl.Int64).alias("iteration"), "rule", "count")
        for iteration, artifact in _having(steps, "filtering", "ledger").items()
    ]
    empty = pl.DataFrame(schema={"iteration": pl.Int64, "rule": pl.String, "count": pl.Int64})
    return pl.concat([empty, *counted]).sort("iteration", pl.col("rule") != "kept", "rule")


def seconds(steps: Steps) -> pl.DataFrame:
    """`iteration, step, seconds` of each step that an iteration made; what it found cost it nothing."""
    rows = [
        (iteration, step, artifact.manifest.duration_s)
        for iteration, made in steps.items()
        for step, artifact in made.items()
        if artifact.manifest.iteration in (iteration, None)
    ]
    return pl.DataFrame(rows, schema={"iteration": pl.Int64, "step": pl.String, "seconds": pl.Float64}, orient="row")


def training(steps: Steps) -> pl.DataFrame:
    """`iteration, step, metric, value` of every optimizer step; steps counted on over the iterations."""
    frames, done = [], 0
    for iteration, artifact in _having(steps, "policy_update", "steps").items():
        frame = artifact.read("steps").select(
            pl.lit(iteration, pl.Int64).alias("iteration"), pl.col("step").cast(pl.Int64) + done, "metric", "value"
        )
        frames.append(frame)
        done = int(frame["step"].max() or 0) + 1 if len(frame) else done  # type: ignore[arg-type]
    schema = {"iteration": pl.Int64, "step": pl.Int64, "metric": pl.String, "value": pl.Float64}
    return pl.concat([pl.DataFrame(schema=schema), *frames])


def provenance(steps: Steps) -> list[dict[str, Any]]:
    """A row per step: what it made, and the runs that made it."""
    rows = []
    for iteration, made in steps.items():
        for step, artifact in made.items():
            manifest = artifact.manifest
            rows.append(
                {
                    "iteration": iteration,
                    "step": step,
                    "artifact": artifact.id,
                    "rows": manifest.rows,
                    "seconds": manifest.duration_s,
                    "mlflow": manifest.mlflow_run_id or "",
                    "prefect": manifest.prefect_flow_run_id or "",
                    "commit": manifest.git_commit or "",
                }
            )
    return rows


def newest_rows(steps: Steps, table: str) -> list[dict[str, Any]]:
    """The rows of a small table of the newest iteration's grades, each with its `iteration`."""
    found = _having(steps, "grading", table)
    if not found:
        return []
    newest = max(found)
    return [{"iteration": newest, **row} for row in found[newest].read(table).to_dicts()]


def _metrics(steps: Steps, step: str) -> list[dict[str, Any]]:
    return [{"iteration": iteration, **made[step].metrics} for iteration, made in steps.items() if step in made]


def _scans(steps: Steps, step: str, table: str, value: pl.Expr) -> dict[int, pl.LazyFrame]:
    found = _having(steps, step, table)
    return {
        iteration: artifact.scan(table).select(value=value.cast(pl.Float64)) for iteration, artifact in found.items()
    }


def _having(steps: Steps, step: str, table: str) -> dict[int, Artifact]:
    return {
        iteration: made[step]
        for iteration, made in steps.items()
        if step in made and table in made[step].manifest.tables
    }


def metric_names(rows: Sequence[Mapping[str, Any]], prefix: str, suffix: str) -> list[str]:
    """The metrics of that form in any of the rows, in order of appearance."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name.startswith(prefix) and name.endswith(suffix)]
