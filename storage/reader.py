"""Reading tables and files: the schema is checked always, the hash on first read."""

import hashlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import CorruptArtifact
from storage.fingerprints import digest
from storage.home import home
from storage.records import RECORDS
from storage.store import open_store

CHUNK_BYTES = 1 << 22
READ_BUFFER_BYTES = 1 << 20
_verified: set[tuple[str, int, int]] = set()
_lock = threading.Lock()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def scan(root: str, folder: str, table: str, files: list[tuple[str, str]]) -> pl.LazyFrame:
    """A lazy frame over the Parquet files of one table.

    `files` holds (name, expected SHA-256). Raises `CorruptArtifact` naming the file and, for a schema, the
    column with what was expected and found. A nullable column that a file was written without is null.
    """
    record = RECORDS[table]
    empty = record.create_empty()
    if not files:
        return empty.lazy()
    paths = [checked_path(root, folder, name, sha256) for name, sha256 in files]
    for path in paths:
        _check_schema(path, table, empty.to_arrow().schema)
    later = [name for name in _nullable(table) if any(name not in pq.read_schema(path).names for path in paths)]
    if not later:
        return pl.scan_parquet(paths).select(empty.columns)
    scans = [pl.scan_parquet(path) for path in paths]
    stored = {name: pl.String() if isinstance(dtype, pl.Enum) else dtype for name, dtype in empty.schema.items()}
    nulls = pl.LazyFrame(schema={name: stored[name] for name in later})
    return pl.concat([*scans, nulls], how="diagonal").select(empty.columns)


def _nullable(table: str) -> list[str]:
    return [name for name, column in RECORDS[table].columns().items() if column.nullable]


def batches(
    root: str, folder: str, table: str, files: list[tuple[str, str]], columns: list[str], rows: int
) -> Iterator[pl.DataFrame]:
    """A table's rows in their order, some columns of at most `rows` rows at a time, checked like `scan`.

    Pages are decoded as they are needed, so memory is bounded by the rows of one frame, whatever the row groups.
    """
    empty = RECORDS[table].create_empty()
    for name, sha256 in files:
        path = checked_path(root, folder, name, sha256)
        _check_schema(path, table, empty.to_arrow().schema)
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=READ_BUFFER_BYTES) as parquet:
            stored = [name for name in columns if name in parquet.schema_arrow.names]
            later = [pl.lit(None, empty.schema[name]).alias(name) for name in columns if name not in stored]
            for batch in parquet.iter_batches(batch_size=rows, columns=stored):
                yield pl.DataFrame(pl.from_arrow(batch)).with_columns(later).select(columns)
        # Arrow keeps what decoding took for itself otherwise.
        pa.default_memory_pool().release_unused()


def checked_path(root: str, folder: str, name: str, sha256: str) -> Path:
    """A local path that holds the stored file, its hash checked once per process (and once per download)."""
    store = open_store(root)
    path = store.local_path(f"{folder}/{name}")
    if path is None:
        path = home() / "cache" / "objects" / sha256[:2] / f"{sha256}-{name}"
        with _lock:
            if not path.exists():
                try:
                    store.fetch(f"{folder}/{name}", path)
                except FileNotFoundError:
                    raise _missing(store.uri(f"{folder}/{name}")) from None
    if not path.exists():
        raise _missing(store.uri(f"{folder}/{name}"))
    if not _is_verified(path):
        found = sha256_of(path)
        if found != sha256:
            if not store.is_local:
                path.unlink()
            raise CorruptArtifact(
                f"{store.uri(f'{folder}/{name}')}: SHA-256 expected {sha256}, found {found}. The file changed after it "
                "was committed; restore it, or make it again with `posttrain rerun ... --force`."
            )
        _verified.add(_identity(path))
    return path


def _missing(uri: str) -> CorruptArtifact:
    return CorruptArtifact(
        f"{uri}: expected by its manifest, not found. Restore it, or make it again with `posttrain rerun ... --force`."
    )


def local_folder(root: str, folder: str, files: dict[str, tuple[str, str]]) -> Path:
    """A local folder with a checked copy of each file; `files` maps own name to (stored name, SHA-256)."""
    contents = sorted((own_name, sha256) for own_name, (_, sha256) in files.items())
    target = home() / "cache" / "files" / digest(contents)
    if target.exists():
        _check_copies(target, files)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix="."))
    try:
        for own_name, (stored_name, sha256) in files.items():
            shutil.copy2(checked_path(root, folder, stored_name, sha256), partial / own_name)
        partial.rename(target)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not target.exists():
            raise
    return target


def _check_copies(target: Path, files: dict[str, tuple[str, str]]) -> None:
    """Hash the copies once a process; a changed one is an error that says which folder to remove."""
    for own_name, (_, sha256) in files.items():
        path = target / own_name
        if not _is_verified(path) and (found := sha256_of(path)) != sha256:
            raise CorruptArtifact(f"{path}: SHA-256 expected {sha256}, found {found}. Remove the folder {target}.")
        _verified.add(_identity(path))


def _identity(path: Path) -> tuple[str, int, int]:
    stat = path.stat()
    return str(path), stat.st_size, stat.st_mtime_ns


def _is_verified(path: Path) -> bool:
    return _identity(path) in _verified


def _check_schema(path: Path, table: str, expected: pa.Schema) -> None:
    found = pq.read_schema(path)
    for field in expected:
        index = found.get_field_index(field.name)
        if index < 0 and field.name in _nullable(table):
            continue
        if index < 0:
            raise CorruptArtifact(
                f"{path}: column {field.name!r} of record {table!r}: expected {field.type}, found no such column "
                f"among {found.names}. It was written by another version; make it again with `posttrain rerun --force`."
            )
        if not _same_type(found.field(index).type, field.type):
            raise CorruptArtifact(
                f"{path}: column {field.name!r} of record {table!r}: expected {field.type}, "
                f"found {found.field(index).type}. Make it again with `posttrain rerun ... --force`."
            )


def _same_type(found: pa.DataType, expected: pa.DataType) -> bool:
    """Equal, with string_view and dictionary spellings of one type taken as the same."""
    return _plain(found) == _plain(expected)


def _plain(kind: pa.DataType) -> str:
    text = str(kind).replace("large_", "").replace("string_view", "string")
    if pa.types.is_dictionary(kind):
        return str(kind.value_type).replace("large_", "").replace("string_view", "string")
    return text.replace("element: ", "item: ").replace(" not null", "")
