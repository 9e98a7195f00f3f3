"""`posttrain grade`: try a grader on stored outputs. Nothing is written."""

import json
import time
from typing import Annotated, Any

import polars as pl
import typer
import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

from flows.config import ROOT_VARIABLE, default_root
from flows.environment import embedded
from flows.tables import cell, number
from storage.errors import InputError
from storage.home import home
from tasks.grading.addresses import ADDRESS
from tasks.grading.config import MAJORITY, OTHER_REWARD_MODEL, REWARD_MODEL, GraderConfig
from tasks.grading.judges.config import JUDGES

BINS, BAR_CHARS, EXTREMES, TEXT_CHARS = 10, 40, 3, 160


def register(app: typer.Typer) -> None:
    """Add the command to an app."""
    app.command()(grade)


def grade(
    file: Annotated[str, typer.Argument(help="Parquet or JSONL of outputs, or the id of a rollouts artifact.")],
    grader: Annotated[str, typer.Option(help="As in a run file: a verifier, module:name, an address, command.")],
    param: Annotated[list[str] | None, typer.Option(help="key=value, the value in YAML; may be repeated.")] = None,
    judging: Annotated[str | None, typer.Option(help="Of a judge, in YAML as in a run file: {endpoint: ...}.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="The first so many; all by default.")] = None,
    prompt_column: Annotated[str, typer.Option(help="Column of texts or lists of messages.")] = "prompt",
    completion_column: Annotated[str, typer.Option(help="Column of the outputs to grade.")] = "completion",
    answer_column: Annotated[str, typer.Option(help="Column of reference answers; it may be missing.")] = "answer",
    score_range: Annotated[tuple[float, float], typer.Option(help="A score outside fails its row.")] = (0.0, 1.0),
    timeout_s: Annotated[float, typer.Option(help="Seconds that one row may take.")] = 10.0,
    concurrency: Annotated[int, typer.Option(help="Rows or requests at once, of graders that wait.")] = 16,
    batch_size: Annotated[int, typer.Option(help="Rows per grade_batch, request or run.")] = 32,
    root: Annotated[str | None, typer.Option(help=f"Of the artifact; ${ROOT_VARIABLE} by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on standard output.")] = False,
) -> None:
    """Try a grader on stored outputs: histogram, extremes, what failed and why. Nothing is written."""
    config = _config(
        grader=grader,
        params=_params(param or []),
        judging=None if judging is None else _yaml("--judging", judging),
        score_range=score_range,
        timeout_s=timeout_s,
        concurrency=concurrency,
        batch_size=batch_size,
    )
    where = root or default_root()
    if "s3://" in where + file:
        embedded(home())
    from flows.stored_samples import Columns, stored_samples

    columns = Columns(prompt_column, completion_column, answer_column)
    samples, missing = stored_samples(file, where, columns, config, rows)
    if not samples:
        raise InputError(f"{file}: holds no rows")
    if missing:
        Console(stderr=True).print(f"note: {missing}", style="yellow", highlight=False, soft_wrap=True)
    summary = graded(samples, config)
    if as_json:
        typer.echo(json.dumps(summary, indent=1, ensure_ascii=False, default=str))
    else:
        _print(Console(), summary)


def graded(samples: list[Any], config: GraderConfig) -> dict[str, Any]:
    """Grades the samples, with a progress bar on standard error, and sums up."""
    from tasks.grading.grade import grade_samples
    from tasks.grading.graders import open_grader

    opened = open_grader(config)
    columns = (SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    started = time.perf_counter()
    try:
        with bar:
            task = bar.add_task("grading", total=len(samples))
            grades = grade_samples(
                samples, opened, config, lambda done, total, _: bar.update(task, completed=done, total=total)
            )
    finally:
        opened.close()
    return summed_up(samples, grades, time.perf_counter() - started)


def summed_up(samples: list[Any], grades: pl.DataFrame, seconds: float) -> dict[str, Any]:
    """Numbers, histogram, extremes and failures of grades, which stand in the order of the samples."""
    ok = grades.filter(pl.col("status") == "ok")
    texts = {sample.rollout_id: sample.text for sample in samples}
    best = ok.sort("score", "rollout_id", descending=[True, False])
    failed = grades.filter(pl.col("status") == "failed").with_columns(
        pl.col("detail").str.json_path_match("$.error").alias("error")
    )
    reasons = failed.group_by("error").agg(pl.len().alias("rows"), pl.col("rollout_id").first().alias("first"))
    return {
        "graders": sorted(grades["grader_version"].unique()),
        "rows": len(grades),
        "ok": len(ok),
        "failed": len(failed),
        "mean": ok["score"].mean(),
        "std": ok["score"].std(),
        "passed_fraction": ok["passed"].mean(),
        "histogram": histogram(ok["score"].to_list()),
        "best": _examples(best.head(EXTREMES), texts),
        "worst": _examples(best.slice(EXTREMES).tail(EXTREMES).reverse(), texts),
        "failures": reasons.sort(["rows", "error"], descending=[True, False]).to_dicts(),
        "seconds": seconds,
        "rows_per_s": len(grades) / max(seconds, 1e-9),
        "cost": grades["cost"].sum(),
    }


def histogram(scores: list[float]) -> list[dict[str, float]]:
    """Ten equal bins from 0 to 1, or over the scores' own range where they leave it; the last holds its upper end."""
    if not scores:
        return []
    low, high = min(0.0, *scores), max(1.0, *scores)
    width = (high - low) / BINS
    counts = [0] * BINS
    for score in scores:
        counts[min(BINS - 1, int((score - low) / width))] += 1
    return [{"from": low + i * width, "to": low + (i + 1) * width, "rows": count} for i, count in enumerate(counts)]


def _examples(rows: pl.DataFrame, texts: dict[str, str]) -> list[dict[str, Any]]:
    known = rows.select("rollout_id", "score", "passed", "detail").to_dicts()
    return [row | {"text": texts[row["rollout_id"]]} for row in known]


def _print(console: Console, summary: dict[str, Any]) -> None:
    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    passed = summary["passed_fraction"]
    say(f"[bold]{cell(', '.join(summary['graders']), TEXT_CHARS)}[/]: {summary['ok']} of {summary['rows']} rows graded")
    known = [f"mean {number(summary['mean'])}"] if summary["ok"] else []
    known += [f"deviation {number(summary['std'])}"] if summary["ok"] > 1 else []
    known += [f"passed {passed:.1%}"] if passed is not None else []
    say(", ".join([*known, f"{summary['rows_per_s']:,.0f} rows/s", f"cost {summary['cost']:g}"]))
    most = max((bin_["rows"] for bin_ in summary["histogram"]), default=0)
    for bin_ in summary["histogram"]:
        bar = "█" * -(-BAR_CHARS * bin_["rows"] // most)
        say(f"{bin_['from']:>8.2f} to {bin_['to']:<6.2f} {bin_['rows']:>7} {bar}")
    for name in ("best", "worst"):
        for row in summary[name]:
            say(f"{name:<5} {number(row['score'])}  {cell(row['text'], TEXT_CHARS)}")
    if summary["failed"]:
        say(f"[bold red]{summary['failed']} failed[/]")
    for row in summary["failures"]:
        say(f"{row['rows']:>7}  {cell(row['error'], 2 * TEXT_CHARS)}  (first: {cell(row['first'])})")


def _config(**values: Any) -> GraderConfig:
    if ADDRESS.match(values["grader"]):
        values["name"] = "endpoint"
    if values["grader"] in (MAJORITY, *JUDGES):
        values["from_iteration"] = 1  # these are no held-out prompts
    if values["grader"] in (REWARD_MODEL, OTHER_REWARD_MODEL):
        raise InputError(
            f"--grader {values['grader']}: a reward model grades in a run; name a verifier or one of your own"
        )
    try:
        return GraderConfig(**values)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}"
            + ("" if "credentials" in each["msg"] else f", found {each['input']!r}")  # what was found is a secret
            for each in error.errors()
        ]
        raise InputError("grader: " + "; ".join(wrong)) from None


def _params(settings: list[str]) -> dict[str, Any]:
    params = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--param {setting!r}: expected key=value")
        params[key] = _yaml(f"--param {setting!r}", value)
    return params


def _yaml(option: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"{option}: the value is no YAML: {str(error).splitlines()[0]}") from None
