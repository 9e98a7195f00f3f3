"""From what a stage made to a committed artifact: the shared last step of every attempt."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.artifacts import MANIFEST, Artifact, Manifest, Outputs, TableEntry
from storage.documents import read_document
from storage.provenance import git_commit, package_versions
from storage.store import open_store
from storage.writer import ArtifactWriter, merge_tables


@dataclass(frozen=True)
class Recipe:
    """What an artifact is made of, as its manifest tells it."""

    artifact: Artifact
    step: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    seed: int | None
    campaign: str | None = None
    iteration: int | None = None
    mlflow_run_id: str | None = None
    work: str = "0"
    """What partial work hangs on besides the fingerprint: the inputs' content and the number of shards, hashed."""


@dataclass(frozen=True)
class Attempt:
    """One try at making it: when it began, and the Prefect runs it is part of."""

    started_at: datetime
    scratch: Path
    prefect_flow_run_id: str | None = None
    prefect_task_run_id: str | None = None


def commit_outputs(
    recipe: Recipe, attempt: Attempt, outputs: Outputs, shards: list[Manifest] | None = None, *, replace: bool = False
) -> Manifest:
    """Write the outputs and their manifest, over the tables of the shards if there were any.

    Returns the manifest that stands: of two writers the first one's.
    """
    writer = ArtifactWriter(recipe.artifact, attempt.scratch)
    _write(writer, outputs)
    parts = [*(shard.tables for shard in shards or []), writer.tables]
    manifest = _manifest(recipe, attempt, outputs, writer, merge_tables(parts), shards or [])
    return writer.commit(manifest, replace=replace)[0]


def commit_shard(recipe: Recipe, attempt: Attempt, index: int, outputs: Outputs) -> Manifest:
    """Write one shard's tables and its own small manifest, which the stage's manifest will join."""
    writer = ArtifactWriter(recipe.artifact, attempt.scratch, part=index)
    _write(writer, outputs)
    manifest = _manifest(recipe, attempt, outputs, writer, writer.tables, [])
    store, path = open_store(recipe.artifact.root), shard_path(recipe, index)
    if store.create(path, manifest.model_dump_json(indent=1).encode()):
        return manifest
    return read_document(store, path, Manifest)


def read_shard(recipe: Recipe, index: int) -> Manifest | None:
    """The manifest of a shard that was committed before, for inputs of the same content."""
    try:
        return read_document(open_store(recipe.artifact.root), shard_path(recipe, index), Manifest)
    except FileNotFoundError:
        return None


def forget_shards(artifact: Artifact) -> None:
    """Remove shard manifests, so that a forced rerun makes every shard anew. Data files stay."""
    store = open_store(artifact.root)
    for name in store.names(artifact.folder):
        if name.startswith("_shard-"):
            store.remove(f"{artifact.folder}/{name}")


def shard_path(recipe: Recipe, index: int) -> str:
    """Where a shard's manifest lies."""
    return f"{recipe.artifact.folder}/_shard-{recipe.work}-{index:05d}.json"


def committed(artifact: Artifact) -> Manifest | None:
    """The manifest, if the artifact exists."""
    try:
        return read_document(open_store(artifact.root), f"{artifact.folder}/{MANIFEST}", Manifest)
    except FileNotFoundError:
        return None


def _write(writer: ArtifactWriter, outputs: Outputs) -> None:
    for table, frames in outputs.tables.items():
        writer.add_table(table, frames)
    for name, path in outputs.files.items():
        writer.add_file(name, path)
    for name, path in outputs.volatile_files.items():
        writer.add_file(name, path, volatile=True)


def _manifest(
    recipe: Recipe,
    attempt: Attempt,
    outputs: Outputs,
    writer: ArtifactWriter,
    tables: dict[str, TableEntry],
    shards: list[Manifest],
) -> Manifest:
    now = datetime.now(UTC)
    own = (now - attempt.started_at).total_seconds()
    return Manifest(
        stage=recipe.artifact.stage,
        step=recipe.step,
        fingerprint=recipe.artifact.fingerprint,
        version=recipe.version,
        config=dict(recipe.config),
        inputs=dict(recipe.inputs),
        seed=recipe.seed,
        tables=tables,
        files=writer.files,
        metrics=outputs.metrics,
        facts=outputs.facts,
        started_at=min([attempt.started_at, *(shard.started_at for shard in shards)]),
        duration_s=own + busy_seconds(shards),
        attempt=writer.attempt,
        campaign=recipe.campaign,
        iteration=recipe.iteration,
        git_commit=git_commit(),
        packages=package_versions(),
        prefect_flow_run_id=attempt.prefect_flow_run_id,
        prefect_task_run_id=attempt.prefect_task_run_id,
        mlflow_run_id=recipe.mlflow_run_id,
    )


def busy_seconds(shards: list[Manifest]) -> float:
    """Seconds in which at least one shard ran: shards side by side count once, pauses between them don't."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted((s.started_at.timestamp(), s.started_at.timestamp() + s.duration_s) for s in shards):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
