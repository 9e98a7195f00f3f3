"""Grades rows in worker processes, so that no grader stops the others: what is stuck or dies fails its own row.

Rows are dealt out in requests; an answer depends on its row alone, so neither their order nor the number of workers
changes it. A worker is ended when a row takes longer than the limit, in C code that holds the interpreter's lock too.
"""

import itertools
import logging
import math
import pickle
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any, Literal

from storage import errors
from storage.errors import InputError, PosttrainError
from tasks.grading.lanes import decode
from tasks.grading.pool import BEFORE_ROWS, Worker, WorkerPool
from tasks.grading.verdict import Answer, Failure

Progress = Callable[[int, int, str], None]
FIRST_ROWS, MOST_ROWS = 32, 1024
PREPARE_S = 600.0
WATCH_S = 0.1
LOST_AT_MOST, LOST_WARNED = 20, 3


@dataclass(frozen=True)
class Job:
    """What a worker grades with: `factory` ("package.module:function") of `arguments` gives a `lanes.Prepared`.

    `timeout_s` is a rollout's. `mode`: "rows" one after the other, in requests as large as a tenth of a second allows;
    "concurrent", all rows of a request at once, which the worker bounds and times by itself; "batches", a request is
    one call. `rows` is the size of a request, for "rows" at most.
    """

    factory: str
    arguments: tuple[Any, ...] = ()
    timeout_s: float = 10.0
    mode: Literal["rows", "concurrent", "batches"] = "rows"
    rows: int = MOST_ROWS


@dataclass
class _Request:
    """Places of rows that a worker has; `counted` and `since` are its last sign of life, `starved_s` as it was then."""

    places: list[int]
    counted: tuple[int, int] = (0, BEFORE_ROWS)
    since: float = field(default_factory=time.monotonic)
    starved_s: float = 0.0


def grade_in_workers(rows: Sequence[Any], job: Job, pool: WorkerPool, progress: Progress) -> list[Answer]:
    """One answer a row. Raises the errors of ours that a worker raises, such as `InputError` for wrong parameters."""
    return _Grading(rows, job, pool, progress).answers()


class _Grading:
    """One call of `grade_in_workers`."""

    def __init__(self, rows: Sequence[Any], job: Job, pool: WorkerPool, progress: Progress) -> None:
        self._rows, self._job, self._pool, self._progress = rows, job, pool, progress
        self._packed_job = pickle.dumps((list(sys.path), job.factory, job.arguments))
        self._answers: dict[int, Answer] = {}
        self._waiting: deque[int] = deque(range(len(rows)))
        self._alone: deque[int] = deque()
        self._busy: dict[Worker, _Request] = {}
        self._size = job.rows
        if job.mode == "rows":
            self._size = max(1, min(FIRST_ROWS, math.ceil(len(rows) / pool.size)))
        self._unprepared = self._lost = 0

    def answers(self) -> list[Answer]:
        """Deal out, listen, look who is stuck, until every row has an answer."""
        with self._none_left_behind():
            while len(self._answers) < len(self._rows):
                self._deal_out()
                if not self._busy:
                    self._pool.wait(WATCH_S)
                    continue
                workers = {worker.connection: worker for worker in self._busy}
                for connection in wait(list(workers), WATCH_S):
                    self._listen(workers[connection])  # type: ignore[index]
                for worker in list(self._busy):
                    self._watch(worker)
        return [self._answers[place] for place in range(len(self._rows))]

    @contextmanager
    def _none_left_behind(self) -> Iterator[None]:
        """A worker that still grades when this ends, by an error or an interruption, is ended."""
        try:
            yield
        finally:
            self._pool.leave(self)
            for worker in list(self._busy):
                self._pool.discard(worker)

    def _deal_out(self) -> None:
        """A request to every worker that can be had. First all are started, then they are written to."""
        taken: list[Worker] = []
        wanted = len(self._alone) + math.ceil(len(self._waiting) / self._size)
        while len(taken) < wanted and (worker := self._pool.take(self, holding=bool(taken or self._busy))) is not None:
            taken.append(worker)
        for worker in taken:
            request = _Request(self._next_places(), starved_s=worker.starved_s)
            self._busy[worker] = request
            try:
                worker.send(self._packed_job, [self._rows[place] for place in request.places])
            except OSError:
                self._gone(worker)

    def _next_places(self) -> list[int]:
        if self._alone:
            return [self._alone.popleft()]
        return [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]

    def _listen(self, worker: Worker) -> None:
        try:
            kind, places, encoded = pickle.loads(worker.connection.recv_bytes())
        except (EOFError, OSError):
            self._gone(worker)
            return
        request = self._busy[worker]
        if kind == "refused":
            name, message = encoded
            raise getattr(errors, name, PosttrainError)(message)
        if kind == "again":
            self._again(request, decode(encoded[0]))
        else:
            self._take_in(worker, request, places, encoded)
        if kind != "part":
            del self._busy[worker]
            self._pool.give_back(worker)
            self._adapt(request, len(places))
            self._put_back(request)
        self._progress(len(self._answers), len(self._rows), "rollouts")

    def _take_in(self, worker: Worker, request: _Request, places: Sequence[int], encoded: Sequence[Any]) -> None:
        for place, answer in zip(places, encoded, strict=True):
            self._answers[request.places[place]] = decode(answer)
        if len(places):
            self._unprepared = 0
        request.since, request.starved_s = time.monotonic(), worker.starved_s

    def _again(self, request: _Request, failure: Answer) -> None:
        """Rows that failed together are graded one by one; one that was alone has failed by itself."""
        if len(request.places) == 1:
            self._answers[request.places[0]] = failure
        else:
            self._alone.extend(request.places)
            request.places = []

    def _adapt(self, request: _Request, answered: int) -> None:
        """Requests grow while workers are faster than the slice of time that they take."""
        if self._job.mode != "rows":
            return
        if answered < len(request.places):
            self._size = max(1, answered)
        elif answered >= self._size:
            self._size = min(self._job.rows, 2 * self._size)

    def _put_back(self, request: _Request) -> None:
        self._waiting.extendleft(reversed([place for place in request.places if place not in self._answers]))

    def _watch(self, worker: Worker) -> None:
        """End a worker that is dead, or whose row is late: what it waited for a core isn't its own time."""
        request, now = self._busy[worker], time.monotonic()
        if worker.pulse != request.counted:
            request.counted, request.since, request.starved_s = worker.pulse, now, worker.starved_s
        limit_s = self._job.timeout_s * (len(request.places) if self._job.mode == "batches" else 1)
        if request.counted[1] == BEFORE_ROWS:
            limit_s = PREPARE_S
        taken_s = now - request.since
        if taken_s > limit_s and taken_s - (worker.starved_s - request.starved_s) > limit_s:
            self._gone(worker, f"TimeoutError: no answer within {limit_s:g} s; its worker was ended")
        elif worker.ended and not worker.connection.poll():
            self._gone(worker)

    def _gone(self, worker: Worker, late: str | None = None) -> None:
        """A worker is stuck or dead: the row that did it fails, or those that may have done it are tried alone."""
        request, row = self._busy.pop(worker), worker.pulse[1]
        level = logging.WARNING if self._lost < LOST_WARNED else logging.DEBUG
        how = worker.end(stuck=late is not None, level=level)
        self._pool.discard(worker)
        reason = late or f"the grader ended its worker process ({how})"
        if row == BEFORE_ROWS:
            self._not_prepared(reason)
        elif self._job.mode == "rows":
            self._size = max(1, row)  # those before it are to be answered before another one is stuck
            self._lose(request.places[row], reason)
        elif len(request.places) == 1:
            self._lose(request.places[0], reason)
        else:
            self._alone.extend(place for place in request.places[: row + 1] if place not in self._answers)
            request.places = request.places[row + 1 :]
        self._put_back(request)
        self._give_up(reason)

    def _not_prepared(self, reason: str) -> None:
        """An idle worker may have been ended by others; a second that gets to no row can't be chance."""
        self._unprepared += 1
        if self._unprepared > 1:
            raise InputError(f"grader {self._job.factory}{self._job.arguments} doesn't start: {reason}")

    def _lose(self, place: int, reason: str) -> None:
        self._answers[place] = Failure(reason)
        self._lost += 1
        if self._lost == 1:  # samples of one prompt are neighbours: what follows is to stand for all
            spread = list(self._waiting)
            random.Random(0).shuffle(spread)
            self._waiting = deque(spread)

    def _give_up(self, reason: str) -> None:
        """When most of the rows so far were stuck or ended their worker, the rest isn't waited for."""
        if self._lost < LOST_AT_MOST or 2 * self._lost <= len(self._answers):
            return
        rest = (
            f"not graded: of the {len(self._answers)} rollouts before it {self._lost} were lost, the last by: {reason}"
        )
        for place in itertools.chain(self._waiting, self._alone):
            self._answers[place] = Failure(rest)
        self._waiting.clear()
        self._alone.clear()
