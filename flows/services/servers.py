"""The three servers that `up` starts, as a table: command, environment, port and what shows that each answers."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows.environment import artifact_root, local_settings, mlflow_database
from flows.services import seaweed
from flows.services.health import bucket_listed, http_answers
from flows.services.running import HOST, MARK, Ports, s3_access

# What would send a server's own calls elsewhere, or make it another user's.
NOT_INHERITED = ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_PROFILE", MARK)


@dataclass(frozen=True)
class Server:
    """How one server is started and checked; both functions take the port that it got."""

    name: str
    port: int
    option: str
    """The command line's option for the port."""
    command: Callable[[int], list[str]]
    environment: Callable[[int], dict[str, str]]
    answers: Callable[[int], Callable[[], bool]]
    timeout_s: float


def base_environment(home: Path) -> dict[str, str]:
    """This process's environment with the home's settings, whatever the variables were before."""
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    return inherited | local_settings(home) | {"NO_PROXY": _no_proxy("NO_PROXY"), "no_proxy": _no_proxy("no_proxy")}


def _no_proxy(name: str) -> str:
    return ",".join(filter(None, [os.environ.get(name), HOST, "localhost"]))


def table(home: Path, ports: Ports) -> list[Server]:
    """The servers, those first that take longest to answer."""
    return [_prefect(home, ports.prefect), _mlflow(home, ports.mlflow), _s3(home, ports.s3)]


def _prefect(home: Path, port: int) -> Server:
    def environment(port: int) -> dict[str, str]:
        # By default any web page that the user visits may call the API, and so start flow runs.
        own = f"http://{HOST}:{port},http://localhost:{port}"
        return base_environment(home) | {
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": own,
            "PREFECT_SERVER_UI_API_URL": f"http://{HOST}:{port}/api",
        }

    return Server(
        "prefect",
        port,
        "--prefect-port",
        lambda port: [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)],
        environment,
        lambda port: http_answers(f"http://{HOST}:{port}/api/health"),
        timeout_s=180,
    )


def _mlflow(home: Path, port: int) -> Server:
    def command(port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", mlflow_database(home), "--default-artifact-root", artifact_root(home)),
            # Clients write artifacts to the folder themselves, as embedded runs do: one experiment serves both.
            "--no-serve-artifacts",
            # Names that a browser on this machine uses, through a tunnel's port too; no other name reaches the server.
            *("--allowed-hosts", f"{HOST},{HOST}:*,localhost,localhost:*"),
        ]

    return Server(
        "mlflow",
        port,
        "--mlflow-port",
        command,
        lambda _: base_environment(home),
        lambda port: http_answers(f"http://{HOST}:{port}/health"),
        timeout_s=180,
    )


def _s3(home: Path, port: int) -> Server:
    return Server(
        "s3",
        port,
        "--s3-port",
        lambda port: seaweed.command(home, port),
        lambda _: base_environment(home),
        lambda port: bucket_listed(s3_access(home, f"http://{HOST}:{port}")),
        timeout_s=90,
    )
