"""Processes that grade: started when they are needed, kept for the next slice, ended with this process.

Starting one costs about 0.15 s of a core: it imports no torch and no frames.
"""

import atexit
import contextlib
import functools
import logging
import mmap
import os
import pickle
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tasks._engines.child_process import new_log, read_log, spawn
from tasks._training.launch import process_environment
from tasks.grading.lanes import PULSE

LOG = logging.getLogger(__name__)
LOGS = "graders"
LOG_TAIL_LINES, STACK_LINES = 12, 5
STACK = "(most recent call first):"
CLOSE_TIMEOUT_S = 5.0
TRACE_S = 0.2
BEFORE_ROWS = -1


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Worker:
    """A process of `tasks.grading.worker`; one request at a time."""

    def __init__(self) -> None:
        self._log_path = new_log(LOGS, "worker")
        with tempfile.TemporaryFile() as file:
            file.truncate(PULSE.size)
            self._pulse = mmap.mmap(file.fileno(), PULSE.size)
            environment = process_environment(os.environ, cores())
            self._process, self.connection = spawn(
                "tasks.grading.worker", self._log_path, environment, files=[file.fileno()], own_session=True
            )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    @property
    def pulse(self) -> tuple[int, int]:
        """A count that moves while the process lives, and the row that it began last (-1: none yet)."""
        count, row = PULSE.unpack_from(self._pulse)
        return count, row

    @property
    def starved_s(self) -> float:
        """Seconds in which the process wanted a core and had none, since it began; 0 where the system doesn't say."""
        try:
            return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError):
            return 0.0

    def send(self, job: bytes, rows: list[Any]) -> None:
        """A request. Raises `OSError` when the process is gone."""
        PULSE.pack_into(self._pulse, 0, 0, BEFORE_ROWS)
        self.connection.send_bytes(pickle.dumps((job, rows), pickle.HIGHEST_PROTOCOL))

    def end(self, *, stuck: bool, level: int) -> str:
        """End the process, and what it started: how it ended, in words. Its last words are logged at that level."""
        if stuck:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR1)  # it writes where it is stuck, into its log
            time.sleep(TRACE_S)
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(CLOSE_TIMEOUT_S)
        self.kill()
        words = last_words(read_log(self._log_path))
        LOG.log(level, "a grading worker %s; its log ends:\n%s", "was stuck" if stuck else "died", words)
        code = self._process.returncode or 0
        return f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """End the process and what it started, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_TIMEOUT_S)
        self.connection.close()


def last_words(log: str) -> str:
    """The innermost calls of the last stack that faulthandler wrote, else the last lines."""
    _, mark, stack = log.rpartition(STACK)
    return "\n".join(stack.splitlines()[1 : STACK_LINES + 1] if mark else log.splitlines()[-LOG_TAIL_LINES:])


class WorkerPool:
    """At most `size` workers, shared by threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()
        self._queue: list[object] = []
        self._changed = threading.Condition()

    def take(self, taker: object, *, holding: bool) -> Worker | None:
        """An idle worker or a fresh one; None while all are in use, or others that hold none came first."""
        with self._changed:
            others_first = bool(self._queue) and self._queue[0] is not taker
            worker = None if others_first else self._idle_or_fresh()
            if worker is not None and taker in self._queue:
                self._queue.remove(taker)
            elif worker is None and not holding and taker not in self._queue:
                self._queue.append(taker)
            return worker

    def _idle_or_fresh(self) -> Worker | None:
        while self._idle:
            worker = self._idle.pop()
            if not worker.ended:
                return worker
            self._forget(worker)
        if len(self._all) == self.size:
            return None
        worker = Worker()
        self._all.add(worker)
        return worker

    def leave(self, taker: object) -> None:
        """The taker wants no more workers."""
        with self._changed:
            if taker in self._queue:
                self._queue.remove(taker)
                self._changed.notify_all()

    def give_back(self, worker: Worker) -> None:
        """The worker has answered all that it was asked."""
        with self._changed:
            self._idle.append(worker)
            self._changed.notify_all()

    def discard(self, worker: Worker) -> None:
        """End a worker whose answers nobody waits for."""
        with self._changed:
            self._forget(worker)

    def wait(self, timeout_s: float) -> None:
        """Until a worker is given back, at most."""
        with self._changed:
            self._changed.wait(timeout_s)

    def close(self) -> None:
        """End all workers, those in use too."""
        with self._changed:
            for worker in list(self._all):
                self._forget(worker)
            self._idle.clear()

    def _forget(self, worker: Worker) -> None:
        worker.kill()
        self._all.discard(worker)
        self._changed.notify_all()


_one_shared = threading.Lock()


def shared_pool() -> WorkerPool:
    """This process's pool, of a worker a core."""
    with _one_shared:
        return _shared_pool()


@functools.cache
def _shared_pool() -> WorkerPool:
    pool = WorkerPool(cores())
    atexit.register(pool.close)
    return pool
