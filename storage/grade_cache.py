"""What graders were paid for: rows below the root that outlive every artifact, so that no grade is paid for twice.

Layout: `grade_cache/<key of grader>/<uuid>.parquet`. A segment is written whole and never changed; segments of one
shard are joined when it is done. `posttrain gc` leaves them alone.
"""

import io
import uuid
from datetime import UTC, datetime

import polars as pl

from storage.errors import CorruptArtifact
from storage.parquet_scan import scan_stored
from storage.store import open_store

FOLDER = "grade_cache"
RELISTINGS = 5
SCHEMA = pl.Schema(
    {
        "row_key": pl.String(),
        "status": pl.Enum(["ok", "pending"]),
        "score": pl.Float64(),
        "passed": pl.Boolean(),
        "uncertainty": pl.Float64(),
        "detail": pl.String(),
        "cost": pl.Float64(),
        "ticket": pl.String(),
        "written_at": pl.Datetime("us", "UTC"),
    }
)


class GradeCache:
    """The answers of all graders below one root; failed ones are never kept.

    A row is `ok`, or `pending` with the ticket under which its answer can be collected. A pending row without a
    ticket withdraws the one before: its answer failed, so that the sample can be asked again.
    """

    def __init__(self, root: str) -> None:
        self._store = open_store(root)

    def find(self, grader_key: str, row_keys: list[str]) -> pl.DataFrame:
        """The rows of these keys, at most one each: the first ok row, else the newest ticket that wasn't withdrawn.

        Raises `CorruptArtifact` for a segment that can't be read.
        """
        wanted = pl.Series("row_key", row_keys, pl.String).unique()
        found = self._collect(grader_key, wanted)
        newest = pl.col("written_at").rank("ordinal", descending=True).over("row_key")
        answered = found.filter(pl.col("status") == "ok").sort("written_at").unique("row_key", keep="first")
        open_tickets = found.filter(pl.col("status") == "pending").filter(newest == 1, pl.col("ticket").is_not_null())
        return pl.concat([answered, open_tickets.join(answered, on="row_key", how="anti")])

    def add(self, grader_key: str, rows: pl.DataFrame) -> str:
        """Write rows (the schema's columns less `written_at`) as one segment, whole or not at all; gives its name."""
        stamped = rows.with_columns(pl.lit(datetime.now(UTC)).alias("written_at"))
        return self._write(grader_key, stamped.select(SCHEMA.names()).cast(SCHEMA))

    def join(self, grader_key: str, segments: list[str]) -> None:
        """Make one segment of several of one's own. A reader that finds one of them gone lists again."""
        if len(segments) < 2:
            return
        paths = [f"{FOLDER}/{grader_key}/{name}" for name in segments]
        self._write(grader_key, scan_stored(self._store, paths).collect())
        for path in paths:
            self._store.remove(path)

    def spent(self, grader_key: str) -> pl.DataFrame:
        """Cost and detail of every answer so far: what the next one is expected to cost."""
        answered = pl.col("status") == "ok"
        return self._collect(grader_key, None).filter(answered).select("cost", "detail")

    def _write(self, grader_key: str, rows: pl.DataFrame) -> str:
        content = io.BytesIO()
        rows.write_parquet(content, compression="zstd")
        name = f"{uuid.uuid4().hex}.parquet"
        self._store.create(f"{FOLDER}/{grader_key}/{name}", content.getvalue())
        return name

    def _collect(self, grader_key: str, wanted: pl.Series | None) -> pl.DataFrame:
        """The rows of all segments, again from a fresh listing when another process joined some meanwhile."""
        folder = f"{FOLDER}/{grader_key}"
        for attempt in range(RELISTINGS):
            names = [name for name in self._store.names(folder) if not name.startswith(".")]
            if not names:
                return pl.DataFrame(schema=SCHEMA)
            rows = scan_stored(self._store, [f"{folder}/{name}" for name in names]).select(SCHEMA.names())
            if wanted is not None:
                rows = rows.filter(pl.col("row_key").is_in(wanted.implode()))
            try:
                return rows.collect(engine="streaming").cast(SCHEMA)
            except (OSError, pl.exceptions.PolarsError) as error:
                there = set(self._store.names(folder))
                if set(names) <= there or attempt == RELISTINGS - 1:
                    raise CorruptArtifact(
                        f"{self._store.uri(folder)}: a segment can't be read ({str(error).splitlines()[0]}). Restore "
                        "it, or remove it: what it holds is then graded, and paid for, again."
                    ) from error
        raise AssertionError("unreachable: the last attempt returns or raises")
