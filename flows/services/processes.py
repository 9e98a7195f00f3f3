"""Server processes: started in their own group, found again by their mark, ended with their group and no other."""

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from flows.services.running import HOST, MARK, Service, carries_mark
from storage.errors import InputError

LOG_TAIL_LINES = 15
FREE_PORTS = range(20_000, 32_000)


def log_file(home: Path, name: str) -> Path:
    """Where a service's output goes."""
    return home / "logs" / f"{name}.log"


def log_tail(path: Path) -> str:
    """The last lines of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]) if path.exists() else ""


def start(
    home: Path,
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    folder: Path,
    port: int | None = None,
    started_with: str = "",
) -> Service:
    """Start a server that outlives this process, in its own session, its output appended to its log."""
    mark = secrets.token_hex(16)
    log = log_file(home, name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(f"\n--- posttrain up: {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        output.flush()
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment, MARK: mark},
            cwd=folder,
            start_new_session=True,
        )
    return Service(name, process.pid, mark, time.time(), port, started_with)


def members(service: Service) -> list[psutil.Process]:
    """The processes of a service: those that carry its mark, their children, and their process group.

    A server killed with -9 leaves children behind; they carry the mark too. Nothing else is ever listed.
    """
    marked = [process for process in psutil.process_iter() if carries_mark(process.pid, service.mark)]
    found = {process.pid: process for process in marked}
    for process in marked:
        try:
            found |= {child.pid: child for child in process.children(recursive=True)}
        except psutil.NoSuchProcess:
            continue
    if any(_group(process.pid) == service.pid for process in marked):
        found |= {mate.pid: mate for mate in psutil.process_iter() if _group(mate.pid) == service.pid}
    return [process for process in found.values() if process.pid != os.getpid()]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def end(service: Service, *, grace_s: float = 15.0) -> bool:
    """End a service: TERM to its processes, KILL to what is left after `grace_s` seconds. False if nothing ran."""
    processes = members(service)
    _signal(processes, signal.SIGTERM)
    psutil.wait_procs(processes, timeout=grace_s)
    # A child may have been born meanwhile.
    left = [*(process for process in processes if process.is_running()), *members(service)]
    _signal(left, signal.SIGKILL)
    psutil.wait_procs(left, timeout=5)
    return bool(processes)


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def is_free(port: int) -> bool:
    """Whether a loopback port can be listened on now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port(*, room_above: int = 0) -> int:
    """A loopback port that nobody listens on, and neither on the one `room_above` above it.

    Below the range from which the kernel takes ports for outgoing connections, which could be gone by the time the
    server listens. Raises `InputError` when a thousand tries find none.
    """
    for _ in range(1000):
        port = FREE_PORTS.start + secrets.randbelow(len(FREE_PORTS))
        if is_free(port) and (room_above == 0 or is_free(port + room_above)):
            return port
    raise InputError(f"no free port between {FREE_PORTS.start} and {FREE_PORTS.stop} on {HOST}.")


def claim_port(port: int, option: str) -> int:
    """A port that can be listened on: `port`, or any free one for 0. Raises `InputError` that names who has it."""
    if port == 0:
        return free_port()
    if not is_free(port):
        raise InputError(f"port {port} is taken by {port_owner(port)}: end that, or choose another with {option} PORT.")
    return port


def port_owner(port: int) -> str:
    """Who listens on a port, as far as this user may see."""
    try:
        listeners = [
            connection.pid
            for connection in psutil.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid
        ]
        process = psutil.Process(listeners[0])
        return f"process {process.pid} ({' '.join(process.cmdline())[:120]})"
    except (psutil.Error, IndexError):
        return "another user's process"
