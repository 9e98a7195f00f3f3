"""What `posttrain up` left running: read from `services.json` in the home, and checked against the processes.

Imports neither Prefect nor MLflow: `flows.environment` reads it before either is imported.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from storage.errors import InputError

HOST = "127.0.0.1"
BUCKET = "posttrain"
STATE_FILE = "services.json"
S3_CONFIG_FILE = "s3.json"
# In the environment of everything that `up` starts: which start it belongs to. A recycled process id has another.
MARK = "POSTTRAIN_SERVICE"
EXEC_CHECKS = 50


@dataclass(frozen=True)
class Ports:
    """The loopback ports that people open. 0 takes any free one."""

    prefect: int = 4200
    mlflow: int = 5000
    s3: int = 8333


@dataclass(frozen=True)
class Service:
    """One process group that `up` started."""

    name: str
    pid: int
    mark: str
    started_at: float
    """Seconds since the epoch."""
    port: int | None = None
    """None for the worker, which listens nowhere."""
    started_with: str = ""
    """What the worker was told at its start; told otherwise now, it is started anew."""

    @property
    def alive(self) -> bool:
        """Whether this very process still runs: a recycled process id doesn't carry the mark."""
        return carries_mark(self.pid, self.mark)


@dataclass(frozen=True)
class S3Access:
    """How to reach the local S3 store."""

    endpoint_url: str
    bucket: str
    access_key: str
    secret_key: str

    def variables(self) -> dict[str, str]:
        """The environment variables that s3fs, pyarrow and polars read."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }


@dataclass(frozen=True)
class Running:
    """The services that are alive."""

    home: Path
    services: dict[str, Service]

    def url(self, name: str) -> str | None:
        """Where a service listens, or None when it doesn't run."""
        service = self.services.get(name)
        return f"http://{HOST}:{service.port}" if service and service.port else None

    @property
    def prefect_url(self) -> str | None:
        """The Prefect pages."""
        return self.url("prefect")

    @property
    def prefect_api_url(self) -> str | None:
        """What PREFECT_API_URL has to be."""
        return f"{self.prefect_url}/api" if self.prefect_url else None

    @property
    def mlflow_url(self) -> str | None:
        """The MLflow pages, and the tracking URI."""
        return self.url("mlflow")

    @property
    def s3(self) -> S3Access | None:
        """How to reach the S3 store, or None when it doesn't run."""
        endpoint = self.url("s3")
        return s3_access(self.home, endpoint) if endpoint else None

    @property
    def worker(self) -> bool:
        """Whether deployments run here."""
        return "worker" in self.services


def carries_mark(pid: int, mark: str) -> bool:
    """Whether process `pid` runs and was started under `mark`."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and _environment(process).get(MARK) == mark
    except (psutil.Error, OSError):
        return False


def _environment(process: psutil.Process) -> dict[str, str]:
    """The process's environment. In the midst of its exec the kernel shows none for a moment: look again."""
    for _ in range(EXEC_CHECKS):
        if found := process.environ():
            return dict(found)
        time.sleep(0.02)
    return {}


def recorded(home: Path) -> dict[str, Service]:
    """What `services.json` names, alive or not. Raises `InputError` when the file is damaged."""
    path = home / STATE_FILE
    try:
        entries = json.loads(path.read_text())["services"]
        return {entry["name"]: Service(**entry) for entry in entries}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}): end the servers that it named by hand, delete it, run `posttrain up`."
        ) from error


def record(home: Path, services: dict[str, Service]) -> None:
    """Write `services.json`, whole or not at all."""
    path = home / STATE_FILE
    unfinished = path.with_suffix(".new")
    unfinished.write_text(json.dumps({"services": [asdict(service) for service in services.values()]}, indent=1))
    unfinished.replace(path)


def addresses(home: Path) -> Running | None:
    """The services of this home that are alive, or None when none is."""
    alive = {name: service for name, service in recorded(home).items() if service.alive}
    return Running(home, alive) if alive else None


def s3_access(home: Path, endpoint_url: str) -> S3Access:
    """The credentials of this home's store, as its configuration file has them."""
    [identity] = json.loads((home / S3_CONFIG_FILE).read_text())["identities"]
    [pair] = identity["credentials"]
    return S3Access(endpoint_url, BUCKET, pair["accessKey"], pair["secretKey"])


@contextmanager
def private_file(path: Path) -> Iterator[int]:
    """A file descriptor of a new file that only this user reads (0600)."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
