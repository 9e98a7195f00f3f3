"""What the readers give: a row with its origin, or why there is none."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl

from storage.errors import InputError
from storage.records import RejectedRow

EXCERPT_LENGTH = 120
SHOWN_EXAMPLES = 3


@dataclass(frozen=True)
class Row:
    """A source row: `source` is the file, `row` counts from 1."""

    source: str
    row: int
    fields: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Rejection:
    """A row that was set aside: the fields of `storage.records.RejectedRow`, `source` still without the row."""

    source: str
    row: int
    reason: str
    field: str | None = None
    found: str | None = None
    expected: str | None = None

    def __str__(self) -> str:
        named = f", field {self.field!r}" if self.field else ""
        return f"{self.source}:{self.row}{named}: {self.reason}, found {self.found}, expected {self.expected}"


def excerpt(value: object) -> str:
    """At most 120 printable characters of a value, for a message."""
    text = repr(value)
    text = text if len(text) <= EXCERPT_LENGTH else text[: EXCERPT_LENGTH - 1] + "…"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def missing_column(name: str, column: str, present: list[str]) -> str:
    """What is told of a file without a column that the configuration names."""
    return f"{name}: has no column {column!r}; it has {', '.join(present)}; correct the source's field names"


def rejected_frame(rejections: list[Rejection]) -> pl.DataFrame:
    """The rejections as a `RejectedRow` frame, in their order."""
    rows = [asdict(rejection) | {"source": f"{rejection.source}:{rejection.row}"} for rejection in rejections]
    return pl.DataFrame(rows, schema=RejectedRow.create_empty().schema)


def limit_rejections(good: int, rejections: list[Rejection], allowed: float, stage: str) -> None:
    """Raises `InputError` with reasons and examples when more than the `allowed` fraction of rows is bad."""
    limit_bad_rows(good, Counter(r.reason for r in rejections), rejections[:SHOWN_EXAMPLES], allowed, stage)


def limit_bad_rows(good: int, bad: Counter[str], examples: list[Rejection], allowed: float, stage: str) -> None:
    """The same for rows that were counted by reason, with the first of them."""
    read = good + bad.total()
    if not read or bad.total() / read <= allowed:
        return
    reasons = ", ".join(f"{reason} {count}" for reason, count in bad.most_common())
    shown = "\n".join(f"  {rejection}" for rejection in examples)
    raise InputError(
        f"{bad.total()} of {read} rows are bad ({reasons}), above max_rejected_fraction {allowed}:\n{shown}\n"
        f"correct the rows or the sources' field names, or raise {stage}.max_rejected_fraction"
    )
