"""A process that grades rows: `python -m tasks.grading.worker FD PARENT_PID PULSE_FD`.

It imports what it grades with and nothing heavy: no torch, no frames. Over the socket FD it gets pickled pairs (job,
rows): `job` is pickled by itself and known again. A job is (sys.path, "package.module:function", arguments): that
function, called with the arguments, gives the `Prepared` that grades rows. It answers (kind, places, encoded):

- "part": answers of the rows at `places`, more follow; "end": the last of them, rows without one are to be sent again;
- "again": the whole failed, the rows are to be sent one by one; `encoded` holds the one failure;
- "refused": an error of ours that stops the grading: `encoded` is (class name, message).

PULSE_FD is a file of two 64-bit integers that the parent reads while this process is stuck or dead: a count that moves
while it lives, and the row that it began last.
"""

import faulthandler
import mmap
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from storage.errors import PosttrainError
from storage.plugins import import_named
from tasks._training.launch import die_with_parent
from tasks.grading.lanes import PULSE, FailedTogether, Lane, Prepared, failure, packed

JOBS_KEPT = 8


def serve(connection: Connection, pulse: mmap.mmap) -> None:
    """Answers requests until the parent closes its end."""
    jobs: dict[bytes, Prepared] = {}
    lane = Lane(connection, pulse)
    while True:
        try:
            job, rows = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            reply = _graded(jobs, job, rows, lane)
        except PosttrainError as error:
            reply = pickle.dumps(("refused", (), (type(error).__name__, str(error))))
        except FailedTogether as error:
            reply = packed("again", (), [failure(error.__cause__ or error)])
        connection.send_bytes(reply)


def _graded(jobs: dict[bytes, Prepared], job: bytes, rows: Sequence[Any], lane: Lane) -> bytes:
    prepared = jobs.get(job)
    if prepared is None:
        path, factory, arguments = pickle.loads(job)
        sys.path[:] = path
        prepared = import_named("worker's job", factory)(*arguments)
        if len(jobs) == JOBS_KEPT:
            jobs.pop(next(iter(jobs)))
        jobs[job] = prepared
    places, answers = prepared(rows, lane)
    return packed("end", places, answers)


def main() -> None:
    """Serve one parent, and die with it."""
    descriptor, parent_pid, pulse_descriptor = map(int, sys.argv[1:4])
    die_with_parent(parent_pid)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    for each in (descriptor, pulse_descriptor):
        os.set_inheritable(each, False)
    serve(Connection(descriptor), mmap.mmap(pulse_descriptor, PULSE.size))


if __name__ == "__main__":
    main()
