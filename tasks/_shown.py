"""What people see of a stage: its progress, and what it made, in the log, in Prefect and in MLflow."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext

from storage.artifacts import Artifact, Manifest
from storage.tracking import Tracker

PROGRESS_EVERY_S = 5.0
SHOWN_INPUTS = 8
Log = logging.Logger | logging.LoggerAdapter[Any]


def progress_of(step: str, log: Log) -> Callable[[int, int, str], None]:
    """A callback `progress(done, total, what)` that logs and updates a bar in Prefect, a few times a minute."""
    last = time.monotonic()
    bar: list[Any] = []

    def progress(done: int, total: int, label: str) -> None:
        nonlocal last
        if time.monotonic() - last < PROGRESS_EVERY_S:
            return
        last = time.monotonic()
        share = 100.0 * done / max(total, 1)
        log.info("%s: %d of %d %s (%.0f %%)", step, done, total, label, share)
        if TaskRunContext.get() is None:
            return
        try:
            if not bar:
                bar.append(create_progress_artifact(progress=share, description=f"{step}: {label}"))
            else:
                update_progress_artifact(bar[0], progress=share)
        except httpx.HTTPError as error:
            log.warning("%s: Prefect didn't take the progress (%s)", step, error)

    return progress


def show_made(
    artifact: Artifact,
    manifest: Manifest,
    step: str,
    inputs: Mapping[str, Artifact],
    tracker: Tracker | None,
    mlflow_run_id: str | None,
    *,
    cached: bool,
) -> None:
    """Tell MLflow and Prefect what this step made; the manifest holds the same, so nothing hangs on it."""
    log = get_run_logger()
    # The report reads a whole campaign: that many inputs would drown what a reader looks for.
    shown = dict(list(inputs.items())[:SHOWN_INPUTS])
    seconds = f"{manifest.duration_s:.1f} s"
    log.info("%s: %s %s, %d rows", step, "cached" if cached else f"made in {seconds},", artifact.id, manifest.rows)
    run_url = ""
    if tracker and mlflow_run_id:
        run_url = tracker.url(mlflow_run_id)
        trouble = tracker.log_stage(mlflow_run_id, artifact, manifest, step, shown)
        if trouble:
            log.warning("%s: MLflow didn't take it (%s); the next launch logs it again", step, trouble)
    lines = [
        f"**{artifact.id}** {'found (cached)' if cached else f'made in {seconds}'}, {manifest.rows} rows",
        f"`{artifact.uri}`",
        "| input | artifact |\n|---|---|\n" + "\n".join(f"| {name} | `{a.id}` |" for name, a in shown.items()),
        f"[MLflow run]({run_url})" if run_url else "",
    ]
    try:
        create_markdown_artifact("\n\n".join(lines), key=step.replace("_", "-"), description=artifact.id)
    except httpx.HTTPError as error:
        log.warning("%s: Prefect didn't take the artifact's page (%s)", step, error)
