"""A process on the other side of a pipe that may do anything but what it should: bounded reads, deadlines, its end."""

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from tasks.grading.sandbox.inside.codec import LENGTH, decode, encode

CHUNK = 2**16
CONTROL_BYTES = 64 * 2**20
TAIL_BYTES = 500
REASONS = {
    signal.SIGKILL: "killed: CPU time or memory",
    signal.SIGXCPU: "out of CPU time",
    signal.SIGXFSZ: "wrote a file larger than it may",
    signal.SIGSEGV: "crashed (segmentation fault)",
    signal.SIGSYS: "made a forbidden system call",
}


class ContainedError(Exception):
    """The process did what ends its examination; says what."""


class Process:
    """One process with a pipe of frames and a bounded stream of output. Only the thread that made it may use it.

    bubblewrap ends with the thread that started it.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        output_bytes: int,
        value_bytes: int,
        pass_fds: Sequence[int] = (),
        end: Callable[[subprocess.Popen[bytes]], None] | None = None,
    ) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=pass_fds, env={}, start_new_session=True, bufsize=0
        )
        self._end = end or subprocess.Popen.kill
        self._writes, self._reads, self._prints = (_descriptor(self._process, name) for name in STREAMS)
        self._output_left, self._value_bytes = output_bytes, value_bytes
        self._received = bytearray()
        self._tail = b""
        self._poll = select.poll()
        self._poll.register(self._reads, select.POLLIN)
        self._poll.register(self._prints, select.POLLIN)

    @property
    def pid(self) -> int:
        """Of the outermost process."""
        return self._process.pid

    @property
    def printed(self) -> str:
        """The last of what it printed."""
        return self._tail.decode(errors="replace").strip()

    def send(self, frame: bytes, deadline: float) -> None:
        """Write one frame before the deadline (of `time.monotonic`). Raises `ContainedError`."""
        left = memoryview(LENGTH.pack(len(frame)) + frame)
        self._poll.register(self._writes, select.POLLOUT)
        try:
            while left:
                if self._writes in self._wait(deadline):
                    left = left[self._written(left) :]
        finally:
            self._poll.unregister(self._writes)

    def receive(self, deadline: float) -> bytes:
        """The next frame's bytes, unread. Raises `ContainedError`."""
        size = LENGTH.size
        while len(self._received) < size:
            self._wait(deadline)
        length = LENGTH.unpack(self._received[:size])[0]
        if length > self._value_bytes:
            raise ContainedError(f"sent a value of {length} bytes, above {self._value_bytes}")
        while len(self._received) < size + length:
            self._wait(deadline)
        frame = bytes(self._received[size : size + length])
        del self._received[: size + length]
        return frame

    def ask(self, question: Any, deadline: float) -> tuple[Any, ...]:
        """Send a value and read the reply. Raises `ContainedError`, also for a reply that is no tuple of a value."""
        self.send(encode(question, CONTROL_BYTES), deadline)
        return self.reply(deadline)

    def reply(self, deadline: float) -> tuple[Any, ...]:
        """The next frame's value, a tuple that starts with a word. Raises `ContainedError`."""
        try:
            value = decode(self.receive(deadline))
        except ValueError as error:
            raise ContainedError(f"talked out of turn: {error}") from error
        if not isinstance(value, tuple) or not value or not isinstance(value[0], str):
            raise ContainedError("talked out of turn: a reply of another form")
        return value

    def close(self) -> None:
        """Kill it and all that it started, and wait for its end."""
        self._end(self._process)
        self._process.wait()
        for descriptor in (self._process.stdin, self._process.stdout, self._process.stderr):
            if descriptor is not None:
                descriptor.close()

    def _wait(self, deadline: float) -> set[int]:
        """Take in what is there; the descriptors that are ready. Raises `ContainedError`."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise ContainedError("ran out of time")
        ready = {descriptor for descriptor, _ in self._poll.poll(left * 1000)}
        if self._prints in ready:
            self._take_output()
        if self._reads in ready:
            part = os.read(self._reads, CHUNK)
            if not part:
                raise ContainedError(self._ended())
            self._received += part
        return ready

    def _take_output(self) -> None:
        part = os.read(self._prints, CHUNK)
        if not part:
            self._poll.unregister(self._prints)
        self._tail = (self._tail + part)[-TAIL_BYTES:]
        self._output_left -= len(part)
        if self._output_left < 0:
            raise ContainedError("printed more than it may")

    def _written(self, data: memoryview) -> int:
        try:
            return os.write(self._writes, data)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            raise ContainedError(self._ended()) from None

    def _ended(self) -> str:
        """Why it is gone, from the exit code (bubblewrap gives 128 + the signal); no exit code is a verdict."""
        try:
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        number = -code if code < 0 else code - 128
        if number > 0:
            known = {int(signal_): reason for signal_, reason in REASONS.items()}
            return known.get(number, f"ended by signal {number}")
        return f"ended by itself with exit code {code}"


STREAMS = ("stdin", "stdout", "stderr")


def _descriptor(process: subprocess.Popen[bytes], stream: str) -> int:
    number = int(getattr(process, stream).fileno())
    os.set_blocking(number, False)
    return number
