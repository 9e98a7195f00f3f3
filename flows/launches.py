"""A launch: one run of a configuration, written down in the store and tracked in MLflow."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from prefect.runtime import flow_run
from pydantic import BaseModel

from flows.config import RunConfig
from storage.campaigns import Campaign, Launch, new_launch_id
from storage.store import open_store
from storage.tracking import Tracker, open_tracker
from tasks._stage import RunContext, run_context

PREFECT_UI = "http://127.0.0.1:4200"


class LaunchContext(BaseModel):
    """What the flows of one launch hand to each other."""

    launch_id: str
    root: str
    tracking_uri: str
    experiment: str
    mlflow_run_id: str


def prefect_url(flow_run_id: str | None) -> str:
    """Where a browser shows a flow run: at the server, or where `posttrain up` serves the same database."""
    api = os.environ.get("PREFECT_API_URL", "").removesuffix("/api")
    ui = os.environ.get("PREFECT_UI_URL") or api or PREFECT_UI
    return f"{ui}/runs/flow-run/{flow_run_id}"


@contextmanager
def launched(config: RunConfig) -> Iterator[LaunchContext]:
    """Begin a launch: check the store and MLflow, write the configuration down, open the parent run."""
    root = config.resolved_root()
    open_store(root).check()
    launch_id, uri = new_launch_id(), config.tracking_uri()
    tracker = open_tracker(uri, config.tracking.experiment)
    url = prefect_url(flow_run.id)
    run_id = tracker.start_run(
        f"{config.campaign} {launch_id}",
        parent=None,
        config=config.model_dump(mode="json"),
        tags={"posttrain.campaign": config.campaign, "posttrain.launch": launch_id, "prefect.flow_run_url": url},
        note=f"Campaign **{config.campaign}** · [Prefect run]({url}) · root `{root}`",
    )
    launch = Launch(
        launch_id=launch_id,
        campaign=config.campaign,
        started_at=datetime.now(UTC),
        config=config.model_dump(mode="json"),
        prefect_flow_run_id=flow_run.id,
        mlflow_run_id=run_id,
    )
    Campaign(root, config.campaign).record_launch(launch)
    try:
        yield LaunchContext(
            launch_id=launch_id,
            root=root,
            tracking_uri=uri,
            experiment=config.tracking.experiment,
            mlflow_run_id=run_id,
        )
    except BaseException:
        tracker.finish(run_id, failed=True)
        raise
    tracker.finish(run_id)


@contextmanager
def tracked_iteration(
    launch: LaunchContext, config: RunConfig, iteration: int, *, force: frozenset[str], stop_after: str | None
) -> Iterator[tuple[RunContext, Tracker]]:
    """Stages called inside belong to an iteration: its MLflow child run, and what is forced."""
    tracker = open_tracker(launch.tracking_uri, launch.experiment)
    url = prefect_url(flow_run.id)
    run_id = tracker.start_run(
        f"{config.campaign} iteration {iteration}",
        parent=launch.mlflow_run_id,
        config=config.model_dump(mode="json"),
        tags={
            "posttrain.campaign": config.campaign,
            "posttrain.iteration": str(iteration),
            "prefect.flow_run_url": url,
        },
        note=f"Iteration {iteration} of **{config.campaign}** · [Prefect run]({url})",
    )
    context = RunContext(
        root=launch.root,
        campaign=config.campaign,
        iteration=iteration,
        tracker=tracker,
        mlflow_run_id=run_id,
        force=force,
        stop_after=stop_after,
        timeout_s=config.stage_timeout_s,
        steps={},
    )
    try:
        with run_context(context):
            yield context, tracker
    except BaseException:
        tracker.finish(run_id, failed=True)
        raise
    tracker.finish(run_id)
