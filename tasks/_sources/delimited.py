"""Rows of CSV files, one at a time, each named by the line at which it begins (the header is line 1)."""

import csv
import io
from collections.abc import Iterator
from typing import IO, Any

from storage.errors import InputError
from tasks._sources.config import CsvConfig
from tasks._sources.files import SourceFile
from tasks._sources.rows import Rejection, Row, excerpt, missing_column

# The csv module's own limit, which is one for the process, is 128 KiB: less than a prompt with a document in it.
LONGEST_FIELD = 1 << 24
csv.field_size_limit(LONGEST_FIELD)
WITHOUT_HEADER = "its first line is its header: for a file without one name the columns in the source's csv.columns"


def read_csv(file: SourceFile, columns: list[str], layout: CsvConfig) -> Iterator[Row | Rejection]:
    """The rows of one file, every column a string. A ragged, unquotable or undecodable row is a `Rejection`.

    Raises `InputError` for a header that lacks one of `columns`, names one twice or isn't UTF-8, and for a quote that
    is never closed: what follows it would be lost.
    """
    with file.open() as stream:
        reader = _reader(file, stream, layout)
        header = _header(file.name, reader, layout)
        for column in columns:
            if column not in header:
                raise InputError(f"{missing_column(file.name, column, header)}; {WITHOUT_HEADER}")
        yield from _records(file.name, reader, header)


def csv_columns(file: SourceFile, layout: CsvConfig) -> list[str]:
    """The columns of one file. Raises `InputError` as `read_csv` does."""
    with file.open() as stream:
        return _header(file.name, _reader(file, stream, layout), layout)


def _reader(file: SourceFile, stream: IO[bytes], layout: CsvConfig) -> Any:
    delimiter = layout.delimiter or ("\t" if ".tsv" in file.path.lower()[-7:] else ",")
    # Bytes that aren't UTF-8 become lone surrogates, so that one row is set aside and not the file.
    lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _header(name: str, reader: Any, layout: CsvConfig) -> list[str]:
    if layout.columns is not None:
        return layout.columns
    try:
        header = [column.strip() for column in next(reader, [])]
    except csv.Error as error:
        raise InputError(f"{name}: its first line is no CSV header: {error}; correct its quotes") from error
    wrong = _undecodable("".join(header))
    if wrong is not None:
        raise InputError(f"{name}: its first line is not UTF-8, found {wrong}; save the file as UTF-8")
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise InputError(f"{name}: its first line names {twice} more than once; {WITHOUT_HEADER}")
    return header


def _records(name: str, reader: Any, header: list[str]) -> Iterator[Row | Rejection]:
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if "unexpected end" in str(error) or "field larger" in str(error):
                raise InputError(
                    f"{name}:{line}: a quote opens a field that never ends ({error}); close it, or double a quote that "
                    "belongs to the text"
                ) from error
            yield Rejection(name, line, "not_csv", found=str(error), expected='fields like a,"b, ""c"""')
            continue
        if fields is None:
            return
        if fields:
            yield _row(name, line, fields, header)


def _row(name: str, line: int, fields: list[str], header: list[str]) -> Row | Rejection:
    if len(fields) != len(header):
        expected = f"{len(header)} fields: {', '.join(header)}"
        return Rejection(name, line, "ragged_row", found=f"{len(fields)} fields: {excerpt(fields)}", expected=expected)
    for column, value in zip(header, fields, strict=True):
        wrong = _undecodable(value)
        if wrong is not None:
            return Rejection(name, line, "not_utf8", field=column, found=wrong, expected="UTF-8")
    return Row(name, line, dict(zip(header, fields, strict=True)))


def _undecodable(text: str) -> str | None:
    """The first byte of a text that wasn't UTF-8, for a message."""
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = text[error.start].encode("utf-8", "surrogateescape")[0]
        return f"byte {found:#04x} in {excerpt(text)}"
    return None
