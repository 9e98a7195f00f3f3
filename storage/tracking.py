"""MLflow: a parent run per launch, a child run per iteration, stage metrics, datasets, the registered policy.

Only this module knows MLflow. Every run is addressed by its id, so that threads never share an active run.
"""

import functools
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from storage.artifacts import Artifact, Manifest
from storage.errors import InputError, TransientError
from storage.locks import alone

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOG = logging.getLogger(__name__)
PARENT_TAG = "mlflow.parentRunId"
NAME_TAG = "mlflow.runName"
NOTE_TAG = "mlflow.note.content"
MAX_PARAM_CHARS = 6000
MAX_TAG_CHARS = 5000
PAGE_RUNS = 500
DEFAULT_UI = "http://127.0.0.1:5000"


class Tracker:
    """One MLflow tracking server (or SQLite file) and one experiment."""

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri = uri
        self.experiment = experiment

    @functools.cached_property
    def _client(self) -> "MlflowClient":
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        from mlflow import MlflowClient

        with alone("mlflow"):  # of two first runs of a home, one makes the tables
            return MlflowClient(self.uri, registry_uri=self.uri)

    @functools.cached_property
    def experiment_id(self) -> str:
        """The experiment's id; the experiment is made when there is none. Raises `InputError` when unreachable."""
        from mlflow.exceptions import MlflowException

        try:
            client = self._client
            with alone("mlflow"):
                found = client.get_experiment_by_name(self.experiment)
                if found is None:
                    return str(client.create_experiment(self.experiment))
                if found.lifecycle_stage == "deleted":
                    client.restore_experiment(found.experiment_id)
                return str(found.experiment_id)
        except MlflowException as error:
            raise InputError(
                f"MLflow at {self.uri} doesn't answer ({_first_line(error)}). Start it (`posttrain up`), "
                "or set tracking.uri to one that runs."
            ) from error

    def start_run(
        self, name: str, *, parent: str | None, config: Mapping[str, Any], tags: Mapping[str, str], note: str
    ) -> str:
        """Start a run, below `parent` if given, with the configuration as dotted parameters. Returns its id."""
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        labels = {NAME_TAG: name, NOTE_TAG: note, **tags}
        if parent:
            labels[PARENT_TAG] = parent
        params = [Param(key, text[:MAX_PARAM_CHARS]) for key, text in flatten(config).items()]
        experiment_id = self.experiment_id
        try:
            run_id = str(self._client.create_run(experiment_id, tags=labels).info.run_id)
            for start in range(0, len(params), 100):
                self._client.log_batch(run_id, params=params[start : start + 100])
        except MlflowException as error:
            raise TransientError(f"MLflow at {self.uri} took no run ({_first_line(error)}); run again") from error
        return run_id

    def log_metrics(self, run_id: str, prefix: str, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics as `prefix/metric`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [Metric(f"{prefix}/{name}", float(value), now, step) for name, value in metrics.items()]
        for start in range(0, len(batch), 1000):
            self._client.log_batch(run_id, metrics=batch[start : start + 1000])

    def log_stage(
        self, run_id: str, artifact: Artifact, manifest: Manifest, step: str, inputs: Mapping[str, Artifact]
    ) -> str | None:
        """Log what a stage made: its metrics and seconds, its training steps, its inputs as datasets, its pictures.

        Returns what went wrong, if MLflow didn't take it: the manifest holds the same, so a stage doesn't fail for it.
        """
        from mlflow.exceptions import MlflowException

        try:
            iteration = manifest.iteration or 0
            self.log_metrics(run_id, step, {**manifest.metrics, "seconds": manifest.duration_s}, iteration)
            if "steps" in manifest.tables:
                self._log_steps(run_id, step, artifact.read("steps"))
            self._log_inputs(run_id, step, inputs)
            self._log_pictures(run_id, step, artifact, manifest)
        except MlflowException as error:
            return _first_line(error)
        return None

    def _log_steps(self, run_id: str, prefix: str, steps: pl.DataFrame) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [Metric(f"{prefix}/step/{row['metric']}", row["value"], now, row["step"]) for row in steps.to_dicts()]
        for start in range(0, len(batch), 1000):
            self._client.log_batch(run_id, metrics=batch[start : start + 1000])

    def _log_pictures(self, run_id: str, folder: str, artifact: Artifact, manifest: Manifest) -> None:
        """The pictures that belong to a stage; the report's, which are volatile, come with its page."""
        for name, entry in manifest.files.items():
            if name.endswith(".png") and not entry.volatile:
                self._client.log_artifact(run_id, str(artifact.file(name)), folder)

    def _log_inputs(self, run_id: str, context: str, inputs: Mapping[str, Artifact]) -> None:
        """The fingerprint is the digest, the artifact's URI the source."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        datasets = [
            DatasetInput(
                Dataset(
                    name=artifact.stage,
                    digest=artifact.fingerprint,
                    source_type="s3" if artifact.uri.startswith("s3://") else "local",
                    source=json.dumps({"uri": artifact.uri}),
                ),
                [InputTag("mlflow.data.context", f"{context}.{argument}")],
            )
            for argument, artifact in inputs.items()
        ]
        if datasets:
            self._client.log_inputs(run_id, datasets)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> str | None:
        """Put tags on a run, in place of those of the same names. Returns what went wrong, if MLflow didn't take it."""
        from mlflow.exceptions import MlflowException

        try:
            for name, value in tags.items():
                self._client.set_tag(run_id, name, value[:MAX_TAG_CHARS])
        except MlflowException as error:
            return _first_line(error)
        return None

    def finish(self, run_id: str, *, failed: bool = False) -> None:
        """End a run. An MLflow that is gone is logged, not raised: what went wrong before it matters more."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.set_terminated(run_id, "FAILED" if failed else "FINISHED")
        except MlflowException as error:
            LOG.warning("MLflow didn't take the end of run %s (%s)", run_id, _first_line(error))

    def publish(self, run_id: str, name: str, policy: Artifact, report: Path | None, *, champion: bool) -> str | None:
        """Attach the folder of a report and its plots to a run, and register the policy; again, it changes nothing.

        Returns what went wrong, if MLflow didn't take it; the next launch publishes again.
        """
        from mlflow.exceptions import MlflowException

        try:
            if report is not None:
                self._client.log_artifacts(run_id, str(report), "report")
            self.register_policy(name, policy, run_id, champion=champion)
        except MlflowException as error:
            return _first_line(error)
        return None

    def register_policy(self, name: str, policy: Artifact, run_id: str, *, champion: bool) -> str:
        """Register a policy as the newest version with the alias `challenger`, and `champion` if it was promoted.

        The version's source is a pointer in the run's artifacts: the weights stay in the store, once.
        A policy that is registered already keeps its version. Returns the version.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self._registered_version(name, policy)
        if version is None:
            self._client.log_dict(run_id, {"artifact": policy.id, "uri": policy.uri}, "policy/artifact.json")
            source = f"{self._client.get_run(run_id).info.artifact_uri}/policy"
            tags = {"posttrain.artifact": policy.id, "posttrain.uri": policy.uri}
            created = self._client.create_model_version(name, source, run_id, tags=tags, await_creation_for=0)
            version = str(created.version)
        self._client.set_registered_model_alias(name, "challenger", version)
        if champion:
            self._client.set_registered_model_alias(name, "champion", version)
        return version

    def _registered_version(self, name: str, policy: Artifact) -> str | None:
        for version in self._client.search_model_versions(f"name = '{name}'"):
            if version.tags.get("posttrain.artifact") == policy.id:
                return str(version.version)
        return None

    def iteration_runs(self) -> list[dict[str, Any]]:
        """The runs of iterations in the experiment, the newest first: `campaign`, `iteration`, `params`, `metrics`.

        A metric's value is its last. Raises `InputError` when MLflow doesn't answer.
        """
        found: list[dict[str, Any]] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self.experiment_id], "tags.`posttrain.iteration` != ''", max_results=PAGE_RUNS, page_token=token
            )
            for run in page:
                tags = run.data.tags
                labels = {"campaign": tags["posttrain.campaign"], "iteration": int(tags["posttrain.iteration"])}
                found.append({**labels, "params": dict(run.data.params), "metrics": dict(run.data.metrics)})
            token = page.token
            if not token:
                return found

    def url(self, run_id: str) -> str:
        """Where a browser shows the run: at the server, or where `posttrain up` serves the SQLite file."""
        server = self.uri if self.uri.startswith("http") else os.environ.get("POSTTRAIN_MLFLOW_UI", DEFAULT_UI)
        return f"{server.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{run_id}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as dotted keys and text."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


@functools.lru_cache(maxsize=8)
def open_tracker(uri: str, experiment: str) -> Tracker:
    """The tracker of an experiment, one per process."""
    return Tracker(uri, experiment)
