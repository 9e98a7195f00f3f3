"""Writing an artifact: data files first, each validated and hashed, the manifest last and conditionally."""

import hashlib
import io
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import dataframely as dy
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from storage.artifacts import MANIFEST, Artifact, FileEntry, Frames, Manifest, TableEntry
from storage.documents import read_document
from storage.errors import StageFailed
from storage.reader import sha256_of
from storage.records import RECORD_VERSION, RECORDS
from storage.store import Store, open_store

ROW_GROUP_ROWS = 65_536


def validate(table: str, frame: pl.DataFrame) -> pl.DataFrame:
    """The frame in its record's columns and types.

    Raises `StageFailed` naming the rule that rows break, how many, and the first of them.
    """
    record = RECORDS[table]
    try:
        valid, failures = record.filter(frame, cast=True)
    except (dy.exc.SchemaError, pl.exceptions.PolarsError) as error:
        raise StageFailed(f"record {table!r}: {str(error).splitlines()[0]}") from error
    if len(failures):
        counts = ", ".join(f"{rule}: {count}" for rule, count in failures.counts().items())
        first = failures.invalid().row(0, named=True)
        shown = {name: str(value)[:60] for name, value in first.items()}
        raise StageFailed(
            f"record {table!r}: {len(failures)} of {len(frame)} rows break its rules ({counts}); first {shown}"
        )
    return pl.DataFrame(valid)


class ArtifactWriter:
    """Writes one attempt at an artifact. Its files carry the attempt in their names, so that attempts never mix."""

    def __init__(self, artifact: Artifact, scratch: Path, part: int = 0) -> None:
        self.artifact = artifact
        self.attempt = uuid.uuid4().hex[:8]
        self._part = part
        self._scratch = scratch
        self._store: Store = open_store(artifact.root)
        self.tables: dict[str, TableEntry] = {}
        self.files: dict[str, FileEntry] = {}

    def add_table(self, table: str, frames: Frames) -> None:
        """Validate and store a table, frame by frame."""
        if table not in RECORDS:
            raise StageFailed(
                f"stage {self.artifact.stage} made a table {table!r}; storage/records.py has {list(RECORDS)}"
            )
        name = f"{table}-{self._part:05d}-{self.attempt}.parquet"
        local = self._scratch / name
        schema = arrow_schema(table)
        content = hashlib.blake2b(digest_size=16)
        rows, key = 0, RECORDS[table].primary_key()
        hashes: list[pl.Series] = []
        with pq.ParquetWriter(local, schema, compression="zstd") as parquet:
            for frame in _frames(frames):
                valid = validate(table, frame)
                rows += len(valid)
                if key:
                    hashes.append(valid.select(key).hash_rows())
                arrow = _to_arrow(valid, schema)
                content.update(_content_bytes(table, arrow))
                parquet.write_table(arrow, row_group_size=ROW_GROUP_ROWS)
        # Eight bytes a row raise the suspicion, the keys themselves decide. Each frame alone was checked.
        if len(hashes) > 1 and pl.concat(hashes).is_duplicated().any():
            _refuse_doubled(self.artifact, table, pl.read_parquet(local, columns=key))
        entry = self._store_file(local, name, rows=rows)
        record = RECORDS[table].__name__
        self.tables[table] = TableEntry(
            record=record, record_version=RECORD_VERSION, rows=rows, files=[entry], content=content.hexdigest()
        )

    def add_file(self, name: str, path: Path, *, volatile: bool = False) -> None:
        """Store another file under the artifact; the source is left where it is."""
        copy = self._scratch / f"{self.attempt}-{name}"
        shutil.copyfile(path, copy)
        self.files[name] = self._store_file(copy, copy.name, volatile=volatile)

    def commit(self, manifest: Manifest, *, replace: bool = False) -> tuple[Manifest, bool]:
        """Write the manifest last. Returns the one that stands, and whether it is this one.

        With `replace` (a forced rerun) this one takes the place of what was there.
        """
        _check_unique_keys(self.artifact, manifest)
        path = f"{self.artifact.folder}/{MANIFEST}"
        content = manifest.model_dump_json(indent=1).encode()
        if replace:
            self._store.write(path, content)
            return manifest, True
        if self._store.create(path, content):
            return manifest, True
        return read_document(self._store, path, Manifest), False

    def _store_file(self, local: Path, name: str, *, rows: int | None = None, volatile: bool = False) -> FileEntry:
        size, sha256 = local.stat().st_size, sha256_of(local)
        self._store.put_file(local, f"{self.artifact.folder}/{name}")
        return FileEntry(name=name, size_bytes=size, sha256=sha256, rows=rows, volatile=volatile)


def merge_tables(parts: Iterable[dict[str, TableEntry]]) -> dict[str, TableEntry]:
    """The union of the tables that shards wrote, in the order of the shards."""
    merged: dict[str, TableEntry] = {}
    for part in parts:
        for name, entry in part.items():
            if name not in merged:
                merged[name] = entry.model_copy(deep=True)
                continue
            whole = merged[name]
            whole.rows += entry.rows
            whole.files.extend(entry.files)
            whole.content = hashlib.blake2b(f"{whole.content}{entry.content}".encode(), digest_size=16).hexdigest()
    return merged


def arrow_schema(table: str) -> pa.Schema:
    """The Parquet schema of a record: large lists, and each column's unit and description in its metadata."""
    record = RECORDS[table]
    columns = record.columns()
    fields = []
    for field in record.create_empty().to_arrow(compat_level=pl.CompatLevel.oldest()).schema:
        column = columns[field.name]
        metadata = {"unit": (column.metadata or {}).get("unit"), "description": column.description}
        kept = {key: text for key, text in metadata.items() if text}
        kind = pa.large_string() if pa.types.is_dictionary(field.type) else field.type
        fields.append(pa.field(field.name, kind, nullable=column.nullable, metadata=kept or None))
    return pa.schema(fields, metadata={"record": record.__name__, "record_version": str(RECORD_VERSION)})


def _to_arrow(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    enums = [name for name, dtype in frame.schema.items() if isinstance(dtype, pl.Enum)]
    plain = frame.with_columns(pl.col(enums).cast(pl.String)) if enums else frame
    return plain.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema)


def _frames(frames: Frames) -> Iterator[pl.DataFrame]:
    if isinstance(frames, pl.DataFrame):
        yield frames
    else:
        yield from frames


def _content_bytes(table: str, rows: pa.Table) -> memoryview:
    """The rows without the clocks, as plain Parquet: that holds no bytes for nulls and no history of buffers."""
    columns = RECORDS[table].columns()
    clocks = [name for name, column in columns.items() if (column.metadata or {}).get("volatile")]
    sink = io.BytesIO()
    kept = rows.drop_columns(clocks).combine_chunks()
    pq.write_table(kept, sink, compression="none", use_dictionary=False, write_statistics=False, store_schema=False)
    return sink.getbuffer()


def _refuse_doubled(artifact: Artifact, table: str, keys: pl.DataFrame) -> None:
    """A key may occur once over all the frames, or all the shards, of a table."""
    doubled = keys.filter(keys.is_duplicated())
    if len(doubled):
        raise StageFailed(
            f"{artifact.id}: {keys.columns} of {table!r} occurs twice over its frames or the shards, "
            f"first {doubled.row(0)}"
        )


def _check_unique_keys(artifact: Artifact, manifest: Manifest) -> None:
    """Read the key columns alone of every shard's file, and refuse a key that occurs twice over the shards."""
    store = open_store(artifact.root)
    for name, entry in manifest.tables.items():
        key = RECORDS[name].primary_key()
        if key and len(entry.files) > 1:
            paths = [f"{artifact.folder}/{file.name}" for file in entry.files]
            _refuse_doubled(artifact, name, pl.concat([store.read_columns(path, key) for path in paths]))
