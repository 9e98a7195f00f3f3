"""A launch: one run of a configuration, written down in the store and tracked in MLflow."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_link_artifact
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import BaseModel

from flows.config import RunConfig
from flows.log_rules import keep_to_one_line
from storage.campaigns import Campaign, Launch, new_launch_id
from storage.store import check_root
from storage.tracking import Tracker, open_tracker
from tasks._stage import RunContext, run_context

keep_to_one_line()

PREFECT_UI = "http://127.0.0.1:4200"
SHARDS_AT_ONCE = 8
"""Shards in flight: enough for the engines of one machine, few enough to bound what is in memory."""


class LaunchContext(BaseModel):
    """What the flows of one launch hand to each other."""

    launch_id: str
    root: str
    tracking_uri: str
    experiment: str
    mlflow_run_id: str
    target: int


def prefect_url(flow_run_id: str | None) -> str:
    """Where a browser shows a flow run: at the server, or where `posttrain up` serves the same database."""
    api = os.environ.get("PREFECT_API_URL", "").removesuffix("/api")
    ui = os.environ.get("PREFECT_UI_URL") or api or PREFECT_UI
    return f"{ui}/runs/flow-run/{flow_run_id}"


def shard_runner() -> TaskRunner[Any]:
    """Runs the shards of a stage as threads, a few at a time."""
    return ThreadPoolTaskRunner(max_workers=SHARDS_AT_ONCE)


@contextmanager
def launched(config: RunConfig, *, rerun: bool = False) -> Iterator[LaunchContext]:
    """Begin a launch: check the store and MLflow, write the configuration down, open the parent run.

    A `rerun` of one stage doesn't count as the campaign's newest launch.
    """
    root = config.resolved_root()
    check_root(root)
    launch_id, uri = new_launch_id(rerun=rerun), config.tracking_uri()
    campaign = Campaign(root, config.campaign)
    target = campaign.earlier_target(flow_run.id) or _target(config, campaign)
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
        target=None if rerun else target,
        prefect_flow_run_id=flow_run.id,
        mlflow_run_id=run_id,
    )
    campaign.record_launch(launch)
    _link(tracker, run_id)
    try:
        yield LaunchContext(
            launch_id=launch_id,
            root=root,
            tracking_uri=uri,
            experiment=config.tracking.experiment,
            mlflow_run_id=run_id,
            target=target,
        )
    except BaseException:
        tracker.finish(run_id, failed=True)
        raise
    tracker.finish(run_id)


def _link(tracker: Tracker, run_id: str) -> None:
    """Put a link to the MLflow run on the Prefect flow run."""
    try:
        create_link_artifact(
            tracker.url(run_id), link_text="MLflow run", key="mlflow", description="this run in MLflow"
        )
    except httpx.HTTPError as error:
        get_run_logger().warning("Prefect didn't take the link to MLflow (%s)", error)


def _target(config: RunConfig, campaign: Campaign) -> int:
    """How many iterations the campaign has once this launch is done."""
    if config.iterations_per_run is None:
        return config.iterations
    committed = campaign.iterations()
    return (committed[-1] if committed else 0) + config.iterations_per_run


@contextmanager
def tracked_iteration(
    launch: LaunchContext, config: RunConfig, iteration: int, *, force: frozenset[str], stop_after: str | None
) -> Iterator[RunContext]:
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
    _link(tracker, run_id)
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
            yield context
    except BaseException:
        tracker.finish(run_id, failed=True)
        raise
    tracker.finish(run_id)
