"""Rows of files, one at a time, each with its origin; a row that can't be read is a `Rejection`."""

import gzip
import json
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from storage.errors import InputError
from tasks.curate.config import CurateConfig, SourceConfig
from tasks.curate.files import SourceFile, file_digest, source_files, store_errors
from tasks.curate.generators import resolve_generator
from tasks.curate.rows import Rejection, Row, excerpt

BATCH_ROWS = 4096
CHECKED_ROWS = 20


def read_source(source: SourceConfig, seed: int) -> Iterator[Row | Rejection]:
    """Every row of a source in a fixed order. Raises `InputError` for what is wrong with a whole file."""
    if source.generator is not None:
        yield from resolve_generator(source.generator).rows(source.params, seed)
        return
    for file in source_files(source):
        yield from read_file(file, wanted_columns(source))


def wanted_columns(source: SourceConfig) -> list[str]:
    """The columns that a source's configuration names."""
    return [name for name in (source.messages_field, source.prompt_field, source.answer_field) if name]


def read_file(file: SourceFile, columns: list[str]) -> Iterator[Row | Rejection]:
    """The rows of one file, with those columns. Raises `InputError` when the file can't be read or lacks a column."""
    read = {"jsonl": _read_jsonl, "parquet": _read_parquet, "arrow": _read_arrow}[file.format]
    with store_errors(file.name):
        try:
            yield from read(file, columns)
        except (pa.ArrowInvalid, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{file.name}: not a readable {file.format} file: {error}; write it anew") from error


def check_sources(config: CurateConfig) -> None:
    """Looks at every source without reading it whole.

    Raises one `InputError` that lists each missing file and column.
    """
    problems = []
    for source in config.sources:
        try:
            _check_source(source)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))


def source_content(source: SourceConfig) -> dict[str, Any]:
    """What decides a source's rows besides its hashed fields: its files' digests in order, without their paths.

    For a generator also its version and its other parameters. It is part of the stage's fingerprint.
    """
    if source.generator is None:
        return {"files": [file_digest(file.filesystem, file.path, file.name) for file in source_files(source)]}
    generator = resolve_generator(source.generator)
    params = source.model_dump(mode="json")["params"]
    return {
        "files": list(generator.digests(source.params).values()),
        "paths": sorted(params.keys() & set(generator.PATHS)),
        "params": {name: value for name, value in params.items() if name not in generator.PATHS},
        "version": generator.VERSION,
    }


def _check_source(source: SourceConfig) -> None:
    if source.generator is not None:
        resolve_generator(source.generator).digests(source.params)
        return
    columns = wanted_columns(source)
    for file in source_files(source):
        first = list(islice(read_file(file, columns), CHECKED_ROWS))
        rows = [row for row in first if isinstance(row, Row)]
        for column in columns:
            if rows and all(column not in row.fields for row in rows):
                raise InputError(_missing_column(file.name, column, sorted(rows[0].fields)))


def _missing_column(name: str, column: str, present: list[str]) -> str:
    return f"{name}: has no column {column!r}; it has {', '.join(present)}; correct the source's field names"


def _read_jsonl(file: SourceFile, columns: list[str]) -> Iterator[Row | Rejection]:  # noqa: ARG001 rows keep every key
    with file.open() as stream:
        for number, line in enumerate(stream, start=1):
            if number == 1 and line.lstrip().startswith(b"["):
                raise InputError(f"{file.name}: holds a JSON array; expected JSON Lines, one object per line")
            if line.strip():
                yield _parse_line(file.name, number, line)


def _parse_line(name: str, number: int, line: bytes) -> Row | Rejection:
    try:
        fields = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#04x} at {error.start}: {excerpt(line)}"
        return Rejection(name, number, "not_utf8", found=found, expected="UTF-8")
    except (json.JSONDecodeError, RecursionError) as error:
        return Rejection(name, number, "not_json", found=f"{error}: {excerpt(line)}", expected="one JSON object")
    if not isinstance(fields, dict):
        return Rejection(name, number, "bad_type", found=excerpt(fields), expected="a JSON object")
    return Row(name, number, fields)


def _read_parquet(file: SourceFile, columns: list[str]) -> Iterator[Row | Rejection]:
    with file.open() as stream:
        parquet = pq.ParquetFile(stream)
        _require_columns(file.name, parquet.schema_arrow, columns)
        batches = parquet.iter_batches(batch_size=BATCH_ROWS, columns=columns)
        yield from _rows_of_batches(file.name, batches, columns)


def _read_arrow(file: SourceFile, columns: list[str]) -> Iterator[Row | Rejection]:
    with file.open() as stream, pa.ipc.open_stream(stream) as reader:
        _require_columns(file.name, reader.schema, columns)
        yield from _rows_of_batches(file.name, reader, columns)


def _require_columns(name: str, schema: pa.Schema, columns: list[str]) -> None:
    for column in columns:
        if column not in schema.names:
            raise InputError(_missing_column(name, column, schema.names))


def _rows_of_batches(name: str, batches: Iterator[pa.RecordBatch], columns: list[str]) -> Iterator[Row | Rejection]:
    first = 1
    for batch in batches:
        selected = batch.select(columns)
        try:
            rows: list[dict[str, Any]] = selected.to_pylist()
        except UnicodeDecodeError:
            yield from (_row_at(name, first + index, selected.slice(index, 1)) for index in range(selected.num_rows))
        else:
            yield from (Row(name, first + index, fields) for index, fields in enumerate(rows))
        first += batch.num_rows


def _row_at(name: str, number: int, one_row: pa.RecordBatch) -> Row | Rejection:
    try:
        return Row(name, number, one_row.to_pylist()[0])
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#04x} at {error.start}: {excerpt(error.object)}"
        return Rejection(name, number, "not_utf8", found=found, expected="UTF-8")
