"""Processes of posttrain without the seconds that Python takes to import torch and its like: forked, not started.

One process per test session has imported the libraries that a run needs. For each request it forks: a process with its
own id, environment, folder and output, which imports our code, Prefect and MLflow by itself (they read the environment
on import) and ends as `python -m flows.cli` would. What only a fresh interpreter shows, such as an order of sets that
differs from process to process, needs a start without this.
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

# Neither Prefect, MLflow nor ours. What a run imports of them, most of it by way of the three.
LIBRARIES = """
    torch torch.distributed.tensor safetensors.torch peft transformers.masking_utils transformers.generation.utils
    transformers.models.auto.modeling_auto transformers.models.llama.modeling_llama
    polars dataframely pyarrow.parquet pyarrow.dataset pandas scipy.stats sklearn.isotonic matplotlib.pyplot
    plotly.graph_objects jinja2 jsonschema sqlalchemy.orm sqlalchemy.ext.asyncio alembic sqlparse
    fastapi starlette.websockets httpx requests websockets s3fs typer rich.console psutil
    griffe pendulum pydantic_settings prometheus_client opentelemetry.sdk.trace
"""

MESSAGE_BYTES = 2**20


class Command:
    """One forked process; what tests use of `subprocess.Popen`."""

    def __init__(self, pid: int, ended: IO[str], output: IO[str] | None) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended, self._output = ended, output

    def poll(self) -> int | None:
        """The exit code, minus the signal's number if one ended it; None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. Raises `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            if not _readable(self._ended, timeout):
                raise subprocess.TimeoutExpired("a forked process", timeout or 0)
            self.returncode = int(self._ended.readline())
            self._ended.close()
        return self.returncode

    def kill(self) -> None:
        """Kill -9, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """All that it printed, and None for standard error, which is in it. One late is killed, then raised."""
        printed: list[str] = []
        reader = threading.Thread(target=lambda: printed.append(self._output.read()), daemon=True)
        reader.start()
        reader.join(timeout)
        if reader.is_alive():
            self.kill()
            raise subprocess.TimeoutExpired("a forked process", timeout or 0, output="".join(printed))
        self._output.close()
        self.wait()
        return "".join(printed), None


def fork(
    arguments: Sequence[str], *, env: dict[str, str], folder: Path, output: IO | int, module: str = "flows.cli"
) -> Command:
    """`python -m module` with these arguments, running; `output` as `subprocess.Popen` takes it."""
    read, write = os.pipe() if output == subprocess.PIPE else (None, output.fileno())
    status, report = os.pipe()
    request = {"arguments": [module, *arguments], "env": env, "folder": str(folder)}
    socket.send_fds(_server(), [json.dumps(request).encode()], [write, report])
    os.close(report)
    if read is not None:
        os.close(write)
    ended = os.fdopen(status)
    return Command(int(ended.readline()), ended, None if read is None else os.fdopen(read))


def _readable(file: IO[str], timeout: float | None) -> bool:
    return bool(select.select([file], [], [], timeout)[0])


@functools.cache
def _server() -> socket.socket:
    """Our end to the process that forks. It ends with us."""
    from flows.environment import QUIET

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES)
    command = [sys.executable, __file__, str(theirs.fileno())]
    process = subprocess.Popen(command, env={**os.environ, **QUIET}, pass_fds=[theirs.fileno()])
    theirs.close()
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


def serve(requests: socket.socket) -> None:
    """Fork for each request until the other end is closed. Returns in each process that is to run a module."""
    for name in LIBRARIES.split():
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, _reap)
    while True:
        message, files, _, _ = socket.recv_fds(requests, MESSAGE_BYTES, 2)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            _watch(json.loads(message), *files)
            return
        for file in files:
            os.close(file)


def _reap(number: int, frame: object) -> None:
    """Take note of the processes that ended, so that what they computed counts as ours."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _watch(request: dict, output: int, report: int) -> None:
    """Become the one asked for in a process of its own, whose id and end this one reports."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(report)
        _become(request, output)
        return
    os.close(output)
    os.write(report, f"{pid}\n".encode())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(report, f"{code}\n".encode())
    os._exit(0)


def _become(request: dict, output: int) -> None:
    """Take on the environment, folder, output and arguments, and the path of modules that would follow from them."""
    before = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    now = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.path[:] = [request["folder"], *now, *sys.path[1 + len(before) :]]
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    sys.argv = request["arguments"]


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
