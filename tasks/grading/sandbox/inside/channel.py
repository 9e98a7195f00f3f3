"""The pipe between a sandboxed process and the grader, and the bounds that the process puts on itself first.

These modules import little: an interpreter without `typing`, `re` and `json` starts in half the time.
"""

from __future__ import annotations

import os
import resource
import sys

from .codec import LENGTH, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CONTROL_BYTES = 64 * 2**20
DESCRIPTORS = 64


class Channel:
    """Frames over two descriptors: a length, then a value's bytes."""

    def __init__(self, reads: int, writes: int) -> None:
        self.reads, self.writes = reads, writes

    def send(self, value: Any, max_bytes: int = CONTROL_BYTES) -> None:
        """Write one value. Raises `UnportableError` before anything is written."""
        data = encode(value, max_bytes)
        left = memoryview(LENGTH.pack(len(data)) + data)
        while left:
            left = left[os.write(self.writes, left) :]

    def receive(self) -> Any:
        """The next value. Raises `EOFError` when the grader is gone."""
        return decode(self._exactly(LENGTH.unpack(self._exactly(LENGTH.size))[0]))

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self.reads, min(size, 2**20))
            if not part:
                raise EOFError("the grader is gone")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def start() -> tuple[Channel, int]:
    """Take the pipe off standard input and output, then bind this process for good; the channel and a value's bytes.

    Arguments of the process: user id (-1: it stays who it is), bytes of address space, seconds of CPU time, bytes of a
    file, threads (0: not limited), bytes of a value.
    """
    uid, memory_bytes, cpu_s, file_bytes, threads, value_bytes = (int(word) for word in sys.argv[1:])
    channel = Channel(os.dup(0), os.dup(1))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    if uid >= 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    for kind, soft, hard in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_CPU, cpu_s, cpu_s + 1),
        (resource.RLIMIT_FSIZE, file_bytes, file_bytes),
        (resource.RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS),
        *([(resource.RLIMIT_NPROC, threads, threads)] if threads else []),
        (resource.RLIMIT_AS, memory_bytes, memory_bytes),
    ):
        ceiling = resource.getrlimit(kind)[1]
        within = [limit if ceiling == resource.RLIM_INFINITY else min(limit, ceiling) for limit in (soft, hard)]
        resource.setrlimit(kind, (within[0], within[1]))
    return channel, value_bytes
