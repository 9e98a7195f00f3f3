"""A pool that doesn't fit in memory: prompts in files of some thousand rows, and a few numbers of each in memory.

Per prompt: 16 bytes of its id, 12 of its row and file, 8 of its domain and source, 4 of its length.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from storage.records import Prompt, RejectedRow
from tasks._maths.near_duplicates import Labels
from tasks._maths.words import Hashes
from tasks._sources.rows import SHOWN_EXAMPLES, Rejection, rejected_frame
from tasks.curate.duplicates import chat_text, id_names, id_numbers

LATER = ("split", "cluster_id")
SCHEMA = {name: kind for name, kind in Prompt.create_empty().schema.items() if name not in LATER}
ROWS_PER_FRAME = 65_536
Marks = NDArray[np.bool_]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class PoolIndex:
    """What is known of every spooled prompt, in their order: arrays of (prompts,), ids of (prompts, 2)."""

    ids: Hashes
    rows: NDArray[np.int64]
    files: NDArray[np.int32]
    domains: NDArray[np.int32]
    sources: NDArray[np.int32]
    words: NDArray[np.int32]
    file_names: list[str]
    domain_names: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def origin(self, prompt: int) -> str:
        """Where a prompt came from, as in its `source`."""
        return f"{self.file_names[self.files[prompt]]}:{self.rows[prompt]}"


@dataclass
class _Names:
    """Texts as small numbers."""

    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))


class Spool:
    """Takes prompts and rejections chunk by chunk and gives them back the same way."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._chunks: list[tuple[Path, int]] = []
        self._rejected: list[Path] = []
        self._columns: list[dict[str, NDArray[Any]]] = []
        self._files, self._domains = _Names(), _Names()
        self.rejections: Counter[str] = Counter()

    def add(self, prompts: list[dict[str, Any]], words: NDArray[np.int64], source: int) -> None:
        """Store prompts of one source; `words`: (prompts,) how many each has."""
        if not prompts:
            return
        path = self._folder / f"prompts-{len(self._chunks):06d}.arrow"
        pl.DataFrame(prompts, schema=SCHEMA).write_ipc(path, compression="lz4")
        origins = [prompt["source"].rpartition(":") for prompt in prompts]
        self._chunks.append((path, len(prompts)))
        self._columns.append(
            {
                "ids": id_numbers([prompt["prompt_id"] for prompt in prompts]),
                "rows": np.array([int(row) for _, _, row in origins], np.int64),
                "files": np.array([self._files.number(name) for name, _, _ in origins], np.int32),
                "domains": np.array([self._domains.number(prompt["domain"]) for prompt in prompts], np.int32),
                "sources": np.full(len(prompts), source, np.int32),
                "words": words.astype(np.int32),
            }
        )

    def reject(self, rejections: list[Rejection]) -> None:
        """Store rows that are set aside."""
        self.rejections.update(rejection.reason for rejection in rejections)
        if rejections:
            path = self._folder / f"rejected-{len(self._rejected):06d}.arrow"
            rejected_frame(rejections).write_ipc(path, compression="lz4")
            self._rejected.append(path)

    def index(self) -> PoolIndex:
        """The numbers of every prompt that was added."""
        names = list(self._files.numbers), list(self._domains.numbers)
        if not self._columns:
            empty = np.empty(0, np.int32)
            return PoolIndex(np.empty((0, 2), np.uint64), empty.astype(np.int64), empty, empty, empty, empty, *names)
        joined = {name: np.concatenate([part[name] for part in self._columns]) for name in self._columns[0]}
        return PoolIndex(**joined, file_names=names[0], domain_names=names[1])

    def chunks(self, kept: Marks, columns: list[str] | None = None) -> Iterator[tuple[NDArray[np.int64], pl.DataFrame]]:
        """The marked prompts in their order, chunk by chunk, with the index of each."""
        first = 0
        for path, size in self._chunks:
            inside = np.flatnonzero(kept[first : first + size])
            if len(inside):
                yield inside + first, pl.read_ipc(path, columns=columns)[inside]
            first += size

    def rejected(self) -> Iterator[pl.DataFrame]:
        """The rows that were set aside, in their order."""
        yield RejectedRow.create_empty()
        for path in self._rejected:
            yield pl.read_ipc(path)


def framed(parts: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The same rows in frames of about 65,536, which become row groups."""
    held: list[pl.DataFrame] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= ROWS_PER_FRAME:
            yield pl.concat(held)
            held = []
    if held:
        yield pl.concat(held)


@dataclass
class BadRows:
    """How many rows are bad, why, and the first of them."""

    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[Rejection] = field(default_factory=list)

    def count(self, rejections: list[Rejection]) -> None:
        """Take some more."""
        self.reasons.update(rejection.reason for rejection in rejections)
        self.examples.extend(rejections[: SHOWN_EXAMPLES - len(self.examples)])


EXPECTED = {
    "exact_duplicate": "messages and verifier that no earlier row has",
    "over_weight": "the shares of the sources' weights, or max_prompts",
    "over_quota": "the quota of its domain",
}


@dataclass(frozen=True)
class Pool:
    """The pool on disk: what is kept and held out of it, and the index of the prompt that names each one's cluster.

    `first` is the index where a prompt's id stands first; `left_out` has the prompts that a reason took out later.
    """

    spool: Spool
    index: PoolIndex
    first: Labels
    kept: Marks
    held_out: Marks
    cluster: Labels
    left_out: dict[str, Marks] = field(default_factory=dict)

    def prompts(self) -> Iterator[pl.DataFrame]:
        """`Prompt` frames in the order of the sources."""
        return framed(self._named(places, chunk) for places, chunk in self.spool.chunks(self.kept))

    def rejected(self) -> Iterator[pl.DataFrame]:
        """`RejectedRow` frames: what was set aside as it was read, then duplicates, then what was left out later."""
        return framed(self._rejected())

    def texts(self, places: Labels) -> list[str]:
        """The compared texts of some prompts, in ascending order of their places."""
        marks = np.zeros(len(self.index), bool)
        marks[places] = True
        return [text for _, texts in chat_texts(self.spool, marks) for text in texts]

    def domains(self) -> dict[str, int]:
        """Kept prompts per domain, the largest first."""
        counts = np.bincount(self.index.domains[self.kept], minlength=len(self.index.domain_names))
        order = np.argsort(-counts, kind="stable")
        return {self.index.domain_names[number]: int(counts[number]) for number in order if counts[number]}

    def lengths(self) -> Labels:
        """Words of each kept prompt, (kept,)."""
        return self.index.words[self.kept].astype(np.int64)

    def reasons(self) -> dict[str, int]:
        """How many rows were set aside, by reason."""
        later = {reason: int(marks.sum()) for reason, marks in self._later().items()}
        return dict(self.spool.rejections) | {reason: count for reason, count in later.items() if count}

    def _later(self) -> dict[str, Marks]:
        return {"exact_duplicate": self.first != np.arange(len(self.index))} | self.left_out

    def _rejected(self) -> Iterator[pl.DataFrame]:
        yield from self.spool.rejected()
        for reason, marks in self._later().items():
            for places, chunk in self.spool.chunks(marks, ["source"]):
                yield self._set_aside(reason, places, chunk)

    def _set_aside(self, reason: str, places: Labels, chunk: pl.DataFrame) -> pl.DataFrame:
        doubled = reason == "exact_duplicate"
        found = [f"same as {self.index.origin(first)}" if doubled else None for first in self.first[places]]
        return chunk.select(
            "source",
            row=pl.Series(self.index.rows[places]),
            reason=pl.lit(reason),
            field=pl.lit(None, pl.String),
            found=pl.Series(found, dtype=pl.String),
            expected=pl.lit(EXPECTED[reason]),
        )

    def _named(self, places: Labels, chunk: pl.DataFrame) -> pl.DataFrame:
        names = id_names(self.index.ids[self.cluster[places]])
        splits = pl.Series(
            "split", np.where(self.held_out[places], "eval", "train"), Prompt.create_empty()["split"].dtype
        )
        return chunk.with_columns(names.alias("cluster_id"), splits).select(Prompt.create_empty().columns)


def chat_texts(spool: Spool, kept: Marks) -> Iterator[tuple[Labels, list[str]]]:
    """The compared texts of the marked prompts, chunk by chunk, with their places."""
    for places, chunk in spool.chunks(kept, ["messages"]):
        yield places, [chat_text(messages) for messages in chunk["messages"].to_list()]
