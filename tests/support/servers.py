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


@contextmanager
def seaweed_server(home: Path) -> Iterator[Seaweed]:
    """SeaweedFS with a bucket and random credentials."""
    with server(home, "s3") as url:
        access = s3_access(home, url)
        yield Seaweed(access.endpoint_url, access.bucket, access.access_key, access.secret_key)
