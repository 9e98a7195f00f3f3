"""The stage decorator: fingerprint, cached?, compute, commit, track.

    @stage("filtering", version=1)
    def filter_rollouts(rollouts: Artifact, rewards: Artifact, config: FilteringConfig) -> Outputs: ...

Calling a stage inside a flow, under `run_context`, gives the artifact: as a Prefect task that shows as
`Cached` when the artifact exists, and that otherwise computes and commits it. Only faults that may pass are
retried. A stage with `shards` runs them as mapped tasks first, each committed on its own.
"""

import contextvars
import inspect
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx
from prefect import get_run_logger, task, unmapped
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.futures import wait
from prefect.runtime import flow_run, task_run
from prefect.states import Completed, State
from prefect.tasks import exponential_backoff
from pydantic import BaseModel

from storage import commits
from storage.artifacts import Artifact, Manifest, Outputs
from storage.errors import StageFailed, TransientError
from storage.fingerprints import digest, fingerprint, hashed_part
from storage.home import home
from storage.locks import alone
from storage.tracking import Tracker
from tasks._shown import progress_of, show_made

RETRIES = 3
PASSING = (TransientError, ConnectionError, TimeoutError, httpx.TransportError)
BACKOFF_S = 2
Arguments = dict[str, Any]


@dataclass(frozen=True)
class RunContext:
    """What every stage of a run shares. None of it enters a fingerprint."""

    root: str
    campaign: str
    iteration: int
    tracker: Tracker | None = None
    mlflow_run_id: str | None = None
    force: frozenset[str] = frozenset()
    stop_after: str | None = None
    timeout_s: float = 4 * 3600.0
    steps: dict[str, str] | None = None


class StoppedAfter(Exception):
    """The run reached the step that it was asked to stop after."""

    def __init__(self, step: str, artifact: Artifact) -> None:
        super().__init__(step)
        self.step = step
        self.artifact = artifact


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count` of a stage's work."""

    index: int
    count: int


@dataclass(frozen=True)
class StageContext:
    """What a running stage may use: a scratch folder that survives a kill, progress, the log."""

    scratch: Path
    log: logging.Logger | logging.LoggerAdapter[Any]
    progress: Callable[[int, int, str], None]
    iteration: int


_run: contextvars.ContextVar[RunContext] = contextvars.ContextVar("posttrain_run")


@contextmanager
def run_context(context: RunContext) -> Iterator[RunContext]:
    """Stages called inside belong to this run."""
    token = _run.set(context)
    try:
        yield context
    finally:
        _run.reset(token)


@dataclass(frozen=True)
class _Call:
    """One call of a stage: all that its tasks need, resolved in the flow's thread."""

    stage: "Stage"
    arguments: Arguments
    recipe: commits.Recipe
    run: RunContext
    forced: bool

    @property
    def artifact(self) -> Artifact:
        return self.recipe.artifact


class Stage:
    """A stage function with its name, version and way of sharding. Made by `stage`."""

    def __init__(
        self,
        function: Callable[..., Outputs],
        name: str,
        version: int,
        shards: Callable[..., int] | None,
        combine: Callable[..., Outputs] | None,
        extra: Callable[..., Any] | None,
        limits: Callable[..., list[str]] | None = None,
    ) -> None:
        self.function = function
        self.name = name
        self.version = version
        self.shards = shards
        self.combine = combine
        self.extra = extra
        self.limits = limits
        self.__doc__ = function.__doc__

    def artifact(self, root: str, **arguments: Any) -> Artifact:
        """The artifact that a call with these arguments would make, whether it exists or not."""
        config = arguments["config"]
        inputs = {name: artifact.id for name, artifact in _artifacts(arguments).items()}
        extra = self.extra(**_accepted(self.extra, arguments)) if self.extra else None
        made = fingerprint(self.name, self.version, hashed_part(config), inputs, arguments.get("seed"), extra)
        return Artifact(root=root, stage=self.name, fingerprint=made)

    def __call__(self, *, step: str | None = None, **arguments: Any) -> Artifact:
        """Make the artifact, or find it. `step` names this use of the stage where it has several."""
        run = _run.get()
        step = step or self.name
        config: BaseModel = arguments["config"]
        recipe = commits.Recipe(
            artifact=self.artifact(run.root, **arguments),
            step=step,
            version=self.version,
            config=config.model_dump(mode="json"),
            inputs={name: artifact.id for name, artifact in _artifacts(arguments).items()},
            seed=arguments.get("seed"),
            campaign=run.campaign,
            iteration=run.iteration,
            mlflow_run_id=run.mlflow_run_id,
        )
        call = _Call(self, arguments, recipe, run, forced=step in run.force)
        artifact = self._run(call)
        if run.steps is not None:
            run.steps[step] = artifact.id
        if run.stop_after == step:
            raise StoppedAfter(step, artifact)
        return artifact

    def _run(self, call: _Call) -> Artifact:
        step, shards = call.recipe.step, 0
        try:
            if call.forced or commits.committed(call.artifact) is None:
                shards = self.shards(**_accepted(self.shards, call.arguments)) if self.shards else 0
                call = _with_work(call, shards)
                if call.forced:
                    commits.forget_shards(call.artifact)
                    shutil.rmtree(_scratch(call).parent, ignore_errors=True)
                _map_shards(call, shards)
            options: dict[str, Any] = {"name": step, "task_run_name": step, "timeout_seconds": call.run.timeout_s}
            execute_stage.with_options(**options)(call, shards)
        except Exception as error:
            error.add_note(f"step {step} of iteration {call.run.iteration}, campaign {call.run.campaign!r}")
            raise
        return call.artifact


def stage(
    name: str,
    *,
    version: int,
    shards: Callable[..., int] | None = None,
    combine: Callable[..., Outputs] | None = None,
    extra: Callable[..., Any] | None = None,
    limits: Callable[..., list[str]] | None = None,
) -> Callable[[Callable[..., Outputs]], Stage]:
    """Make a stage of a function from artifacts and a configuration to outputs.

    `version` is raised when the same inputs should give another result. `shards` says into how many parts the
    work falls (from the same arguments); `combine` makes further outputs from the joined parts. `extra` adds to
    the fingerprint what lies outside the arguments, such as the content of source files. `limits` names Prefect's
    concurrency limits of which computing takes a slot each, of a shard where there are shards.
    """
    return lambda function: Stage(function, name, version, shards, combine, extra, limits)


def _with_work(call: _Call, shards: int) -> _Call:
    """The call, its partial work (shards, scratch) named by the content of its inputs and the number of shards.

    A forced rerun upstream may have changed that content under the same fingerprint.
    """
    contents = {name: artifact.manifest.content for name, artifact in _artifacts(call.arguments).items()}
    return replace(call, recipe=replace(call.recipe, work=digest([contents, shards])[:12]))


def _may_pass(_task: Any, _task_run: Any, state: State[Any]) -> bool:
    """Prefect asks whether to retry: only faults that may pass, never bad input nor what took too long."""
    if state.name == "TimedOut":
        return False
    error = state.result(raise_on_failure=False) if state.is_failed() else None
    return isinstance(error, PASSING)


_TASK_OPTIONS: dict[str, Any] = {
    "persist_result": True,
    "result_serializer": "json",
    "cache_policy": NO_CACHE,
    "retries": RETRIES,
    "retry_delay_seconds": exponential_backoff(BACKOFF_S),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _may_pass,
}


@task(**_TASK_OPTIONS)
def execute_stage(call: _Call, shards: int) -> Artifact | State[Artifact]:
    """Find the artifact, or compute it (or join its shards) and commit it; then track it."""
    with alone(call.artifact.id):
        found = commits.committed(call.artifact)
        if found is not None and (not call.forced or found.prefect_task_run_id == task_run.id):
            _show(call, found, cached=True)
            return cast(
                State[Artifact], Completed(name="Cached", message=f"{call.artifact.id} exists", data=call.artifact)
            )
        attempt, context = _attempt(call)
        parts = [cast(Manifest, commits.read_shard(call.recipe, index)) for index in range(shards)]
        if not call.stage.shards:
            with _limited(call):
                outputs = _invoke(call.stage.function, call.arguments, context)
        else:
            outputs = _combine(call, parts, context)
        manifest = commits.commit_outputs(call.recipe, attempt, outputs, parts, replace=call.forced)
        shutil.rmtree(_scratch(call).parent, ignore_errors=True)
    if found is not None:
        same = found.content == manifest.content
        get_run_logger().info("%s made again: content %s", call.artifact.id, "identical" if same else "CHANGED")
    _show(call, manifest, cached=False)
    return call.artifact


@task(**_TASK_OPTIONS)
def execute_shard(call: _Call, shard: Shard) -> str | State[str]:
    """Find a shard, or compute and commit it. Gives the shard's attempt."""
    with alone(f"{call.artifact.id}-{shard.index}"):
        found = commits.read_shard(call.recipe, shard.index)
        if found is not None:
            return cast(State[str], Completed(name="Cached", message=f"shard {shard.index} exists", data=found.attempt))
        attempt, context = _attempt(call, shard)
        with _limited(call, shard):
            outputs = _invoke(call.stage.function, {**call.arguments, "shard": shard}, context)
        return commits.commit_shard(call.recipe, attempt, shard.index, outputs).attempt


@contextmanager
def _limited(call: _Call, shard: Shard | None = None) -> Iterator[None]:
    """Within a slot of each concurrency limit that the stage names; one that Prefect doesn't have holds nothing up."""
    limits = call.stage.limits
    names = limits(**_accepted(limits, {**call.arguments, "shard": shard})) if limits else []
    with concurrency(list(dict.fromkeys(names)), strict=False) if names else nullcontext():
        yield


def _map_shards(call: _Call, count: int) -> None:
    options: dict[str, Any] = {"name": f"{call.recipe.step}-shard", "timeout_seconds": call.run.timeout_s}
    mapped = execute_shard.with_options(**options, task_run_name=f"{call.recipe.step}-shard-{{shard.index}}")
    futures = mapped.map(call=unmapped(call), shard=[Shard(index, count) for index in range(count)])
    wait(futures)
    for future in futures:
        future.result()


def _combine(call: _Call, parts: list[Manifest], context: StageContext) -> Outputs:
    metrics = _joined_metrics(parts)
    if not call.stage.combine:
        return Outputs(metrics=metrics)
    view = call.artifact.model_copy()
    tables = commits.merge_tables(part.tables for part in parts)
    view.__dict__["manifest"] = parts[0].model_copy(update={"tables": tables, "metrics": metrics})
    outputs = _invoke(call.stage.combine, {**call.arguments, "joined": view}, context)
    return outputs


def _joined_metrics(parts: list[Manifest]) -> dict[str, float]:
    """Counts of the shards, added up."""
    totals: dict[str, float] = {}
    for part in parts:
        for name, value in part.metrics.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals


def _attempt(call: _Call, shard: Shard | None = None) -> tuple[commits.Attempt, StageContext]:
    scratch = _scratch(call) / (f"shard-{shard.index:05d}" if shard else "stage")
    scratch.mkdir(parents=True, exist_ok=True)
    os.utime(scratch)  # when this attempt began, for whoever looks at what was left
    log = get_run_logger()
    attempt = commits.Attempt(datetime.now(UTC), scratch, flow_run.id, task_run.id)
    return attempt, StageContext(scratch, log, progress_of(call.recipe.step, log), call.run.iteration)


def _scratch(call: _Call) -> Path:
    return home() / "scratch" / call.artifact.id / call.recipe.work


def _show(call: _Call, manifest: Manifest, *, cached: bool) -> None:
    run = call.run
    inputs = _artifacts(call.arguments)
    show_made(call.artifact, manifest, call.recipe.step, inputs, run.tracker, run.mlflow_run_id, cached=cached)


def _artifacts(arguments: Arguments) -> dict[str, Artifact]:
    """The artifacts among the arguments; those in lists and dicts by `argument.key`."""
    found: dict[str, Artifact] = {}
    for name, value in arguments.items():
        if isinstance(value, Artifact):
            found[name] = value
        elif isinstance(value, dict):
            found |= {f"{name}.{key}": item for key, item in value.items() if isinstance(item, Artifact)}
        elif isinstance(value, list | tuple):
            found |= {f"{name}.{index}": item for index, item in enumerate(value) if isinstance(item, Artifact)}
    return found


def _accepted(function: Callable[..., Any], arguments: Arguments) -> Arguments:
    names = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in names}


def _invoke(function: Callable[..., Outputs], arguments: Arguments, context: StageContext) -> Outputs:
    """Call a stage's function with those of the arguments that it names."""
    outputs = function(**_accepted(function, {**arguments, "context": context}))
    if not isinstance(outputs, Outputs):
        raise StageFailed(f"{function.__qualname__} returned {type(outputs).__name__}, expected Outputs")
    return outputs
