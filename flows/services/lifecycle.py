"""`posttrain up` and `posttrain down`: start what doesn't run, end what was started, and nothing else."""

import fcntl
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from flows.services import processes, worker
from flows.services.health import wait, worker_online
from flows.services.running import HOST, STATE_FILE, Ports, Running, Service, addresses, record, recorded
from flows.services.servers import Server, table
from storage.errors import InputError, TransientError

WORKER_TIMEOUT_S = 120.0
LOCK_FILE = "services.lock"


def up(*, home: Path, ports: Ports, echo: Callable[[str], None], deployments: Path) -> Running:
    """Start the Prefect server, MLflow, SeaweedFS and a worker on loopback; register the deployments.

    What is alive is kept. `echo` gets one line per step. The servers outlive this process.

    Raises:
        InputError: a port is taken, SeaweedFS isn't installed, or Prefect refuses the deployments.
        TransientError: a server ended or doesn't answer in time, with the end of its log.
    """
    home = home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    with _alone(home, echo):
        _start_servers(home, table(home, ports), echo)
        running = _running(home)
        worker.make_pool(str(running.prefect_api_url))
        _start_worker(running, deployments.absolute().parent, echo)
        running = _running(home)
        worker.register(running, deployments, echo)
    return running


def down(home: Path) -> list[str]:
    """End what `up` started in this home, and its process groups. Returns who was ended, the worker first."""
    home = home.absolute()
    if not (home / STATE_FILE).exists():
        return []
    with _alone(home, lambda _: None):
        services = recorded(home)
        # The worker first: it would report to a server that is gone.
        last = [services.pop("worker")] if "worker" in services else []
        ended = [_described(service) for service in last if processes.end(service)]
        with ThreadPoolExecutor() as pool:
            outcomes = pool.map(processes.end, services.values())
        ended += [_described(service) for service, ran in zip(services.values(), outcomes, strict=True) if ran]
        (home / STATE_FILE).unlink()
    return ended


def _described(service: Service) -> str:
    where = f" at http://{HOST}:{service.port}" if service.port else ""
    return f"{service.name}{where} (process {service.pid})"


@contextmanager
def _alone(home: Path, echo: Callable[[str], None]) -> Iterator[None]:
    """One `up` or `down` of a home at a time; the next waits."""
    with (home / LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            echo("another `posttrain up` or `down` is at work here: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _running(home: Path) -> Running:
    running = addresses(home)
    if running is None:
        raise TransientError("the servers ended while they started: see the logs in the home's folder `logs`.")
    return running


def _start_servers(home: Path, servers: list[Server], echo: Callable[[str], None]) -> None:
    services = recorded(home)
    missing = [server for server in servers if server.name not in services or not services[server.name].alive]
    for server in missing:
        if server.name in services:
            # Killed with -9, it may have left children that hold its port.
            processes.end(services[server.name])
    claimed = {server.name: _claim(server, services.get(server.name)) for server in missing}
    for server in missing:
        port = claimed[server.name]
        services[server.name] = processes.start(
            home, server.name, server.command(port), server.environment(port), folder=home, port=port
        )
        record(home, services)
    for server in reversed(servers):
        service = services[server.name]
        waited_s = _wait_or_end(home, service, server, fresh=server in missing)
        state = f"started in {waited_s:.0f} s" if server in missing else "runs already"
        echo(f"{server.name} {state}: http://{HOST}:{service.port}")


def _claim(server: Server, before: Service | None) -> int:
    """The port asked for; with 0 the one it had before, if that is still free, so that addresses stay."""
    if server.port == 0 and before is not None and before.port is not None:
        try:
            return processes.claim_port(before.port, server.option)
        except InputError:
            return processes.claim_port(0, server.option)
    return processes.claim_port(server.port, server.option)


def _wait_or_end(home: Path, service: Service, server: Server, *, fresh: bool) -> float:
    """Wait until a server answers; one that was started now and doesn't is ended, so that the next `up` tries again."""
    try:
        return wait(home, service, server.answers(int(service.port or 0)), timeout_s=server.timeout_s)
    except TransientError:
        if fresh:
            processes.end(service)
        raise


def _start_worker(running: Running, project: Path, echo: Callable[[str], None]) -> None:
    services = recorded(running.home)
    before = services.get("worker")
    if before is not None and before.alive and before.started_with == worker.started_with(running, project):
        echo(f"worker runs already: work pool {worker.POOL}")
        return
    if before is not None:
        processes.end(before)
    # A name of its own: one that was killed stays "online" in Prefect's list for a while.
    name = f"posttrain-{secrets.token_hex(4)}"
    services["worker"] = service = worker.start(running, project, name)
    record(running.home, services)
    online = worker_online(str(running.prefect_api_url), worker.POOL, name)
    waited_s = wait(running.home, service, online, timeout_s=WORKER_TIMEOUT_S)
    echo(f"worker started in {waited_s:.0f} s: work pool {worker.POOL}")
