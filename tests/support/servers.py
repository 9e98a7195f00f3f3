"""Real servers for tests: each on a free loopback port, below a folder of its own, ended by whoever started it."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.services import processes
from flows.services.health import wait
from flows.services.running import HOST, Ports, s3_access
from flows.services.servers import table

ANY_PORTS = Ports(prefect=0, mlflow=0, s3=0)


@contextmanager
def server(home: Path, name: str) -> Iterator[str]:
    """One of `up`'s three servers alone (prefect, mlflow or s3); yields its URL once it answers."""
    home.mkdir(parents=True, exist_ok=True)
    [spec] = [spec for spec in table(home, ANY_PORTS) if spec.name == name]
    port = processes.free_port()
    service = processes.start(home, name, spec.command(port), spec.environment(port), folder=home, port=port)
    try:
        wait(home, service, spec.answers(port), timeout_s=spec.timeout_s)
        yield f"http://{HOST}:{port}"
    finally:
        processes.end(service)


@dataclass(frozen=True)
class Seaweed:
    """A running SeaweedFS and the credentials that it takes."""

    endpoint_url: str
    bucket: str
    access_key: str
    secret_key: str

    def fresh_prefix(self) -> str:
        """A root in the bucket that nothing else uses: `s3://bucket/prefix`."""
        return f"s3://{self.bucket}/{uuid.uuid4().hex}"


class RestartableSeaweed:
    """A SeaweedFS that a test stops and starts again, on the same port and data."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._home = home
        self._port = processes.free_port()
        [self._spec] = [spec for spec in table(home, ANY_PORTS) if spec.name == "s3"]

    def start(self) -> Seaweed:
        """Start it and wait until it answers."""
        command, environment = self._spec.command(self._port), self._spec.environment(self._port)
        self._service = processes.start(self._home, "s3", command, environment, folder=self._home, port=self._port)
        wait(self._home, self._service, self._spec.answers(self._port), timeout_s=self._spec.timeout_s)
        access = s3_access(self._home, f"http://{HOST}:{self._port}")
        return Seaweed(access.endpoint_url, access.bucket, access.access_key, access.secret_key)

    def stop(self) -> None:
        """End it; the data stays."""
        processes.end(self._service)


@contextmanager
def seaweed_server(home: Path) -> Iterator[Seaweed]:
    """SeaweedFS with a bucket and random credentials."""
    with server(home, "s3") as url:
        access = s3_access(home, url)
        yield Seaweed(access.endpoint_url, access.bucket, access.access_key, access.secret_key)
