"""An engine's process as its parent sees it: one request at a time, and no answer ever meets another request."""

import contextlib
import fcntl
import itertools
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from storage.errors import InputError, TransientError
from storage.home import home
from tasks._engines.protocol import Progress

LOG = logging.getLogger(__name__)
LOGS_KEPT = 20
ENGINES = "engines"
LOG_TAIL_LINES = 30
CLOSE_TIMEOUT_S = 10.0
POLL_S = 0.5

# The kernel kills the child when the thread that started it ends, not the process: this thread outlives every task.
_SPAWNER = ThreadPoolExecutor(1, thread_name_prefix="child-spawner")
_LOG_NUMBERS = itertools.count()


class Child:
    """A process that runs `module` as `python -m module FD PARENT_PID` and answers requests over the socket FD.

    Both sides pickle tuples. A request is (number, name, *arguments); its answers are (number, "progress", (done,
    total)), any number of times, then (number, "done", value) or (number, "error", text). `name` is for messages.
    """

    def __init__(self, name: str, module: str, environment: Mapping[str, str]) -> None:
        self._name = name
        self._log_path = new_log(ENGINES, name)
        self._numbers = itertools.count(1)
        self._unanswered = self._killed = False
        self._process, self._connection = spawn(module, self._log_path, environment)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can take a request: it runs, and owes no answer to an earlier one."""
        return not self._killed and not self._unanswered and self._process.poll() is None

    def ask(self, *request: Any, timeout_s: float | None = None, on_progress: Progress | None = None) -> Any:
        """The answer to a request (name, *arguments), within `timeout_s` if given; progress is passed on.

        Raises InputError when the child refuses, TransientError when it dies or is late. Anything raised before the
        answer is here (by `on_progress`, or thrown into this thread) kills the child: else the next request would
        find this one's answer.
        """
        number = next(self._numbers)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._unanswered = True
        try:
            with self._death_reported():
                self._connection.send((number, *request))
            while True:
                answered, kind, value = self._receive(request[0], deadline)
                if answered != number:
                    raise self._failure(f"{self._name} answered request {answered}, expected {number}")
                if kind != "progress":
                    break
                if on_progress is not None:
                    on_progress(*value)
        except BaseException:
            self.kill()
            raise
        self._unanswered = False
        if kind == "error":
            raise InputError(f"{self._name} refuses to {request[0]}: {value}\nIts log: {self._log_path}")
        return value

    def _receive(self, request: str, deadline: float | None) -> tuple[int, str, Any]:
        """The next message. Waits in slices: an exception thrown into a thread lands only between two C calls."""
        with self._death_reported():
            while not self._connection.poll(POLL_S):
                if deadline is not None and time.monotonic() > deadline:
                    raise self._failure(f"{self._name} hasn't answered {request!r} in time")
            return self._connection.recv()

    @contextmanager
    def _death_reported(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            try:
                ended = f"exit code {self._process.wait(CLOSE_TIMEOUT_S)}"
            except subprocess.TimeoutExpired:
                ended = f"no exit code within {CLOSE_TIMEOUT_S:.0f} s"
            raise self._failure(f"the {self._name} process died with {ended}") from error

    def _failure(self, what: str) -> TransientError:
        tail = read_log(self._log_path).splitlines()[-LOG_TAIL_LINES:]
        return TransientError("\n".join([f"{what}; the end of {self._log_path}:", *tail]))

    def kill(self) -> None:
        """End the child at once, from any thread: one that waits for an answer gets a TransientError."""
        self._killed = True
        self._process.kill()
        try:
            self._process.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:  # it hangs in a driver, where no signal reaches it
            LOG.warning("%s's process %d doesn't end; it may keep its memory", self._name, self.pid)

    def close(self) -> None:
        """Have the child end itself; what it doesn't within ten seconds is killed. Not while another thread asks."""
        try:
            if self.alive:
                with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                    self._connection.send((next(self._numbers), "close"))
                    self._process.wait(CLOSE_TIMEOUT_S)
        finally:
            if self._process.poll() is None:
                self.kill()
            self._connection.close()


def spawn(
    module: str, log_path: Path, environment: Mapping[str, str], *, files: Sequence[int] = (), own_session: bool = False
) -> tuple[subprocess.Popen[bytes], Connection]:
    """A process `python -m module FD PARENT_PID FILES...`, and our end of the socket FD; its output goes to the log.

    `files` are descriptors that it inherits. With `own_session` Ctrl-C doesn't reach it, and the processes that it
    starts can be ended with it, as the group of its id. The module calls `die_with_parent(PARENT_PID)`: the kernel
    then ends it with this process.
    """
    ours, theirs = socket.socketpair()
    with theirs, log_path.open("wb") as log:
        fcntl.flock(log, fcntl.LOCK_SH)  # the child inherits it: nobody tidies the log of one that lives
        passed = [theirs.fileno(), *files]
        numbers = [theirs.fileno(), os.getpid(), *files]
        started = _SPAWNER.submit(
            subprocess.Popen,
            [sys.executable, "-m", module, *map(str, numbers)],
            env=environment,
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=own_session,
        )
        process = started.result()
    return process, Connection(ours.detach())


def new_log(kind: str, name: str) -> Path:
    """A fresh log file's path below `logs/KIND` of our home; the newest twenty are kept, and those of the living."""
    folder = home() / "logs" / kind
    folder.mkdir(parents=True, exist_ok=True)
    logs = sorted(_ages(folder))
    for _, old in logs[: -LOGS_KEPT + 1]:
        _tidy(old)
    return folder / f"{name.lower()}-{os.getpid()}-{next(_LOG_NUMBERS)}.log"


def read_log(path: Path) -> str:
    """What a process wrote; after its end another process may have tidied it away."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return f"({path} is gone)"


def _tidy(log: Path) -> None:
    with contextlib.suppress(FileNotFoundError, BlockingIOError), log.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        log.unlink()


def _ages(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("*.log"):
        with contextlib.suppress(FileNotFoundError):  # another process tidies here too
            yield path.stat().st_mtime_ns, path
