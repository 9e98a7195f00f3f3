"""Rows of files, one at a time, each with its origin; a row that can't be read is a `Rejection`."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from storage.errors import InputError
from tasks._sources.config import CsvConfig
from tasks._sources.delimited import csv_columns, read_csv
from tasks._sources.files import SourceFile, store_errors
from tasks._sources.rows import Rejection, Row, excerpt, missing_column

BATCH_ROWS = 4096
CHECKED_ROWS = 20
TEXT_COLUMNS = ("text", "name")
UNREADABLE = (pa.ArrowInvalid, EOFError, zlib.error, gzip.BadGzipFile)
AS_USUAL = CsvConfig()


def read_file(file: SourceFile, columns: list[str], csv: CsvConfig = AS_USUAL) -> Iterator[Row | Rejection]:
    """The rows of one file, with those columns. Raises `InputError` when the file can't be read or lacks a column.

    A text file is one row with the fields `text` and `name`, which is the file's without its ending.
    """
    read = partial(read_csv, layout=csv) if file.format == "csv" else READERS[file.format]
    with store_errors(file.name):
        try:
            yield from read(file, columns)
        except UNREADABLE as error:
            raise InputError(f"{file.name}: not a readable {file.format} file: {error}; write it anew") from error


def columns_of(file: SourceFile, csv: CsvConfig = AS_USUAL) -> list[str]:
    """All columns of a file; none of JSONL, whose rows keep every key. Raises as `read_file` does."""
    with store_errors(file.name):
        try:
            if file.format == "csv":
                return csv_columns(file, csv)
            with file.open() as stream:
                if file.format == "parquet":
                    return pq.ParquetFile(stream).schema_arrow.names
                if file.format == "arrow":
                    return pa.ipc.open_stream(stream).schema.names
                return list(TEXT_COLUMNS) if file.format == "text" else []
        except UNREADABLE as error:
            raise InputError(f"{file.name}: not a readable {file.format} file: {error}; write it anew") from error


def check_columns(file: SourceFile, columns: list[str], csv: CsvConfig = AS_USUAL) -> None:
    """Looks at a file's first rows. Raises `InputError` when the file can't be read or lacks a column."""
    first = list(islice(read_file(file, columns, csv), CHECKED_ROWS))
    rows = [row for row in first if isinstance(row, Row)]
    for column in columns:
        if rows and all(column not in row.fields for row in rows):
            raise InputError(missing_column(file.name, column, sorted(rows[0].fields)))


def raise_together(checks: Iterable[Callable[[], None]]) -> None:
    """Runs every check; raises one `InputError` with all that they raised, a line each."""
    problems = []
    for check in checks:
        try:
            check()
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))


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
            raise InputError(missing_column(name, column, schema.names))


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


def _read_text(file: SourceFile, columns: list[str]) -> Iterator[Row | Rejection]:
    for column in columns:
        if column not in TEXT_COLUMNS:
            raise InputError(missing_column(file.name, column, list(TEXT_COLUMNS)))
    with file.open() as stream:
        content = stream.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte {content[error.start]:#04x} at {error.start}"
        yield Rejection(file.name, 1, "not_utf8", field="text", found=found, expected="UTF-8")
    else:
        yield Row(file.name, 1, {"text": text, "name": PurePosixPath(file.path).name.partition(".")[0]})


READERS: dict[str, Callable[[SourceFile, list[str]], Iterator[Row | Rejection]]] = {
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "text": _read_text,
}
