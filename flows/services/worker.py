"""The Prefect worker: its pool, its environment, and the deployments that it runs."""

import json
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path

from flows.services import processes
from flows.services.health import request
from flows.services.running import Running, Service
from flows.services.servers import base_environment
from storage.errors import InputError, TransientError

POOL = "posttrain"
DEPLOY_TIMEOUT_S = 240.0


def environment(running: Running) -> dict[str, str]:
    """What a flow run that the worker starts finds: this home and its servers.

    Raises `TransientError` when a server of the three is gone.
    """
    if running.prefect_api_url is None or running.mlflow_url is None or running.s3 is None:
        raise TransientError("a server ended while the others started: run `posttrain up` again.")
    return base_environment(running.home) | {
        "PREFECT_API_URL": running.prefect_api_url,
        "MLFLOW_TRACKING_URI": running.mlflow_url,
        **running.s3.variables(),
    }


def started_with(running: Running, project: Path) -> str:
    """What the worker is told at its start: addresses, and the folder whose code it runs."""
    return json.dumps([running.prefect_url, running.mlflow_url, running.url("s3"), str(project)])


def make_pool(api_url: str) -> None:
    """Make the process work pool when there is none. Raises `InputError` when one of that name is another kind."""
    try:
        pool = request(f"{api_url}/work_pools/{POOL}")
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise TransientError(f"Prefect answers {error.code} for its work pools.") from error
        description = "Stages on this machine; `posttrain up` starts its worker."
        request(f"{api_url}/work_pools/", {"name": POOL, "type": "process", "description": description})
        return
    if pool["type"] != "process":
        raise InputError(f"the work pool {POOL} is of type {pool['type']}, not process: rename or delete it.")


def start(running: Running, project: Path, name: str) -> Service:
    """Start a worker of that name in the folder whose code it runs. It installs nothing."""
    command = [
        *(sys.executable, "-m", "prefect", "--no-prompt", "worker", "start"),
        *("--name", name, "--pool", POOL, "--type", "process", "--install-policy", "never"),
    ]
    return processes.start(
        running.home,
        "worker",
        command,
        environment(running),
        folder=project,
        started_with=started_with(running, project),
    )


def register(running: Running, deployments: Path, echo: Callable[[str], None]) -> None:
    """Register every deployment of `deployments/prefect.yaml`. Raises `InputError` with what Prefect says."""
    file = deployments / "prefect.yaml"
    if not file.exists():
        echo(f"no deployments registered: there is no {file}")
        return
    command = [
        *(sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"),
        *("--prefect-file", str(file.absolute())),
    ]
    try:
        done = subprocess.run(
            command,
            cwd=deployments.absolute().parent,
            env=environment(running),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEPLOY_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise TransientError(f"registering the deployments of {file} took over {DEPLOY_TIMEOUT_S:.0f} s.") from error
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-processes.LOG_TAIL_LINES :])
        raise InputError(f"{file}: Prefect doesn't take the deployments:\n{said}")
    echo(f"deployments of {file} registered")
