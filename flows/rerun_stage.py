"""Rerun one stage of one iteration, and nothing else."""

import re

from prefect import flow, get_run_logger

from flows.config import CAMPAIGN_PATTERN, RunConfig, default_root, parse_config
from flows.inputs import make_pool
from flows.iteration import take_first_steps, take_steps
from flows.launches import launched, shard_runner, tracked_iteration
from flows.steps import EXPAND, FIRST, JOINED, committed_state
from storage.artifacts import Artifact
from storage.campaigns import Campaign, State
from storage.errors import InputError
from storage.lineage import downstream
from tasks._engines import pool as engines
from tasks._stage import RunContext, StoppedAfter


@flow(
    name="rerun-stage",
    flow_run_name="{campaign} {iteration} {stage}",
    persist_result=True,
    task_runner=shard_runner(),
)
def rerun_stage(campaign: str, iteration: int, stage: str, force: bool = False, root: str | None = None) -> str:
    """Bring one step of an iteration up to date; the steps before it are found, not run.

    Without `force` a step whose artifact exists is found too; with it, the step is made again and takes the place
    of what was there. The configuration is that of the launch which made the iteration, else of the newest
    launch. Gives the id of the artifact. Raises `InputError` for a campaign, iteration or stage that there isn't.
    """
    if not re.fullmatch(CAMPAIGN_PATTERN, campaign):
        raise InputError(f"campaign {campaign!r}: expected lower-case letters, digits, - and _")
    place = Campaign(root or default_root(), campaign)
    done = committed_state(place, iteration, stage)
    record = place.launch(done.launch_id if done else None)
    config = parse_config({**record.config, "root": place.root}, f"launch {record.launch_id}")
    forced = frozenset({stage}) if force else frozenset()
    try:
        with (
            launched(config, rerun=True) as launch,
            tracked_iteration(launch, config, iteration, force=forced, stop_after=stage) as run,
        ):
            made = _steps_until(stage, place, done, config, run)
    finally:
        engines.close_all()
    if force and config.rounds.any and stage in JOINED and iteration != FIRST:
        get_run_logger().warning(
            "%s joins the iteration's rounds: only that was made again; the rounds' own are called %s-1 and so on",
            stage,
            stage,
        )
    if force:
        _warn_of_what_depends(place.root, made)
    return made.id


def _steps_until(stage: str, place: Campaign, done: State | None, config: RunConfig, run: RunContext) -> Artifact:
    try:
        if done is not None and stage != "curate" and not EXPAND.fullmatch(stage):
            prompts = Artifact.at(place.root, done.steps["curate"])
        else:
            prompts = make_pool(config, run.root)
        if run.iteration == FIRST:
            take_first_steps(config, run, prompts)
        else:
            take_steps(place.state(run.iteration - 1), config, run, prompts)
    except StoppedAfter as stopped:
        return stopped.artifact
    raise InputError(
        f"campaign {place.name!r}, iteration {run.iteration}: stage {stage!r} isn't due there under its configuration"
    )


def _warn_of_what_depends(root: str, made: Artifact) -> None:
    """A forced rerun replaces an artifact: name those that were made from the one before."""
    dependents = downstream(root, made.id)
    if dependents:
        get_run_logger().warning("%s was made again; made from it: %s", made.id, ", ".join(sorted(dependents)))
