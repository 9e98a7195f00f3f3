"""What a worker process grades with: a function of rows, and a lane on which it tells its parent how far it is."""

import mmap
import pickle
import struct
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from storage.errors import PosttrainError
from tasks.grading.verdict import Answer, Failure, Verdict

PULSE = struct.Struct("=qq")
SLICE_S = 0.1
Encoded = tuple[Any, ...]


class FailedTogether(Exception):
    """Rows that were graded together failed together: each is to be tried alone, to find out which one it was."""


class Lane:
    """What a `Prepared` tells its parent while it works."""

    def __init__(self, connection: Connection, pulse: mmap.mmap) -> None:
        self._connection, self._pulse, self._count = connection, pulse, 0

    def begin(self, row: int) -> None:
        """Row `row` of the request begins: from now on the time limit is its own."""
        self._count += 1
        PULSE.pack_into(self._pulse, 0, self._count, row)

    def alive(self) -> None:
        """Nothing has begun, but this process isn't stuck."""
        self._count += 1
        self._pulse[:8] = self._count.to_bytes(8, sys.byteorder)

    def part(self, places: list[int], answers: list[Answer]) -> None:
        """Answers that are there before the others."""
        self._connection.send_bytes(packed("part", places, answers))


# Rows and the lane in; the places of the rows that have an answer, and the answers.
Prepared = Callable[[Sequence[Any], Lane], tuple[Sequence[int], list[Answer]]]


def row_by_row(grade: Callable[[Any], Answer]) -> Prepared:
    """Grades one row after the other, as many as a tenth of a second allows: a death costs no more than that."""

    def prepared(rows: Sequence[Any], lane: Lane) -> tuple[Sequence[int], list[Answer]]:
        stop = time.monotonic() + SLICE_S
        answers: list[Answer] = []
        for place, row in enumerate(rows):
            lane.begin(place)
            answers.append(guarded(grade, row))
            if time.monotonic() > stop:
                break
        return range(len(answers)), answers

    return prepared


def guarded(grade: Callable[[Any], Answer], row: Any) -> Answer:
    """The boundary at which somebody else's code fails: its row says so, the others are graded."""
    try:
        return grade(row)
    except PosttrainError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a grader raises
        return failure(error)


def failure(error: BaseException) -> Failure:
    """A failed grade that names the exception."""
    return Failure(f"{type(error).__name__}: {error}")


def packed(kind: str, places: Sequence[int], answers: list[Answer]) -> bytes:
    """An answer of this process. As tuples: pickle reads them in a third of the time of dataclasses."""
    encoded = [encode(answer) for answer in answers]
    return pickle.dumps((kind, places, encoded), pickle.HIGHEST_PROTOCOL)


def encode(answer: Answer) -> Encoded:
    """An answer as a tuple: five values for a verdict, three for a failure."""
    if isinstance(answer, Failure):
        return answer.error, answer.detail, answer.cost
    return answer.score, answer.passed, answer.detail, answer.uncertainty, answer.cost


def decode(encoded: Encoded) -> Answer:
    """What `encode` made a tuple of."""
    return Verdict(*encoded) if len(encoded) == 5 else Failure(*encoded)
