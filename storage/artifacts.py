"""Artifacts: immutable, named by their fingerprint, existing once their manifest does.

Layout below a root: `artifacts/<stage>/<fingerprint>/<table>-00000-<attempt>.parquet`, other files as
`<attempt>-<name>`, then `_manifest.json` last. A sharded stage first leaves `_shard-<work>-00003.json` per shard.
"""

import functools
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from storage import reader
from storage.documents import read_document
from storage.errors import InputError
from storage.fingerprints import digest
from storage.store import open_store

MANIFEST = "_manifest.json"
# Manifests may come from a bucket that others write to: no name in one may leave its folder.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
IdPart = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Frames = pl.DataFrame | Iterable[pl.DataFrame]


class FileEntry(BaseModel):
    """One stored file. `volatile` files (a page with durations in it) are no part of the content digest."""

    name: FileName
    size_bytes: int
    sha256: Sha256
    rows: int | None = None
    volatile: bool = False


class TableEntry(BaseModel):
    """One table of an artifact: its record, its Parquet files, and a digest of its rows without the clocks."""

    record: str
    record_version: int
    rows: int
    files: list[FileEntry]
    content: str


class Manifest(BaseModel):
    """What an artifact holds and where it came from."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    step: str
    fingerprint: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, str] = Field(description="argument -> artifact id")
    seed: int | None
    tables: dict[str, TableEntry]
    files: dict[FileName, FileEntry]
    metrics: dict[str, float]
    facts: dict[str, Any] = Field(default_factory=dict, description="what a reader needs that is no table")
    started_at: datetime
    duration_s: float
    attempt: str
    campaign: str | None = None
    iteration: int | None = None
    git_commit: str | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    prefect_flow_run_id: str | None = None
    prefect_task_run_id: str | None = None
    mlflow_run_id: str | None = None

    @property
    def content(self) -> str:
        """A digest of all that the artifact holds, equal for two runs that made the same."""
        tables = {name: entry.content for name, entry in self.tables.items()}
        files = {name: entry.sha256 for name, entry in self.files.items() if not entry.volatile}
        return digest([tables, files, self.facts])

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(entry.rows for entry in self.tables.values())

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        tables = sum(file.size_bytes for entry in self.tables.values() for file in entry.files)
        return tables + sum(file.size_bytes for file in self.files.values())


class Outputs:
    """What a stage made: tables by the name of their record, files by name, and metrics to track."""

    def __init__(
        self,
        *,
        metrics: dict[str, float] | None = None,
        files: dict[str, Path] | None = None,
        volatile_files: dict[str, Path] | None = None,
        facts: dict[str, Any] | None = None,
        **tables: Frames,
    ) -> None:
        self.tables = tables
        self.files = files or {}
        self.volatile_files = volatile_files or {}
        self.metrics = metrics or {}
        self.facts = facts or {}


class Artifact(BaseModel):
    """A reference to an artifact: a few hundred bytes, passed between stages instead of rows."""

    model_config = ConfigDict(frozen=True)

    root: str
    stage: IdPart
    fingerprint: IdPart

    @classmethod
    def at(cls, root: str, artifact_id: str) -> "Artifact":
        """The artifact that an id such as `rollouts/3f2a...` names below a root."""
        stage, _, fingerprint = artifact_id.partition("/")
        try:
            return cls(root=root, stage=stage, fingerprint=fingerprint)
        except ValidationError:
            raise InputError(f"artifact {artifact_id!r}: expected stage/fingerprint") from None

    @property
    def id(self) -> str:
        return f"{self.stage}/{self.fingerprint}"

    @property
    def folder(self) -> str:
        """The artifact's path below the root."""
        return f"artifacts/{self.stage}/{self.fingerprint}"

    @property
    def uri(self) -> str:
        return open_store(self.root).uri(self.folder)

    def exists(self) -> bool:
        """Whether it was committed."""
        return open_store(self.root).exists(f"{self.folder}/{MANIFEST}")

    @functools.cached_property
    def manifest(self) -> Manifest:
        """The manifest. Raises `InputError` when the artifact doesn't exist."""
        try:
            return read_document(open_store(self.root), f"{self.folder}/{MANIFEST}", Manifest)
        except FileNotFoundError:
            raise InputError(f"artifact {self.id}: not found below {self.root}") from None

    @property
    def metrics(self) -> dict[str, float]:
        return self.manifest.metrics

    def scan(self, table: str) -> pl.LazyFrame:
        """A lazy frame over a table, its files checked against the manifest's hashes and the record's schema."""
        return reader.scan(self.root, self.folder, table, self._files_of(table))

    def batches(self, table: str, columns: list[str], rows: int) -> Iterator[pl.DataFrame]:
        """Some columns of a table, at most `rows` rows at a time and in their order, checked like `scan`."""
        return reader.batches(self.root, self.folder, table, self._files_of(table), columns, rows)

    def _files_of(self, table: str) -> list[tuple[str, str]]:
        entry = self.manifest.tables.get(table)
        if entry is None:
            raise InputError(f"artifact {self.id} has no table {table!r}; it has {sorted(self.manifest.tables)}")
        return [(file.name, file.sha256) for file in entry.files]

    def read(self, table: str) -> pl.DataFrame:
        """A whole table in memory."""
        return self.scan(table).collect()

    def files_folder(self) -> Path:
        """A local folder with checked copies of the artifact's other files, each under its own name."""
        entries = self.manifest.files.items()
        return reader.local_folder(self.root, self.folder, {name: (file.name, file.sha256) for name, file in entries})

    def file(self, name: str) -> Path:
        """A local, checked copy of one of the artifact's other files."""
        if name not in self.manifest.files:
            raise InputError(f"artifact {self.id} has no file {name!r}; it has {sorted(self.manifest.files)}")
        return self.files_folder() / name
