"""Whether a server answers, asked the way its clients ask."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.services.processes import log_file, log_tail
from flows.services.running import BUCKET, S3Access, Service
from storage.errors import TransientError

POLL_S = 0.25
# The machine's own servers: never through a proxy.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def request(url: str, body: Any = None, *, timeout_s: float = 10.0) -> Any:
    """GET a URL, or POST `body` as JSON; the answer decoded from JSON, or its text. Raises `urllib.error.URLError`."""
    content = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} if body is not None else {}
    with _OPENER.open(urllib.request.Request(url, content, headers), timeout=timeout_s) as answer:
        text = answer.read().decode()
    try:
        return json.loads(text)
    except ValueError:
        return text


def http_answers(url: str) -> Callable[[], bool]:
    """A check that a GET of `url` succeeds."""

    def check() -> bool:
        try:
            request(url, timeout_s=5)
        except (urllib.error.URLError, OSError):
            return False
        return True

    return check


def bucket_listed(access: S3Access) -> Callable[[], bool]:
    """A check that the store takes the credentials and lists the bucket."""
    import s3fs
    from botocore.exceptions import BotoCoreError

    def check() -> bool:
        store = s3fs.S3FileSystem(
            key=access.access_key,
            secret=access.secret_key,
            endpoint_url=access.endpoint_url,
            config_kwargs={"connect_timeout": 2, "read_timeout": 5, "retries": {"max_attempts": 1}, "proxies": {}},
            skip_instance_cache=True,
        )
        try:
            return BUCKET in store.ls("", refresh=True)
        except (OSError, BotoCoreError):
            return False

    return check


def worker_online(api_url: str, pool: str, name: str) -> Callable[[], bool]:
    """A check that the worker of that name polls the pool."""

    def check() -> bool:
        try:
            workers = request(f"{api_url}/work_pools/{pool}/workers/filter", {}, timeout_s=5)
        except (urllib.error.URLError, OSError):
            return False
        return any(worker["name"] == name and worker["status"] == "ONLINE" for worker in workers)

    return check


def wait(home: Path, service: Service, answers: Callable[[], bool], *, timeout_s: float) -> float:
    """Wait until a service answers; returns the seconds since its start.

    Raises `TransientError` with the end of its log when it dies or doesn't answer in time.
    """
    deadline = time.monotonic() + timeout_s
    while not answers():
        if not service.alive:
            raise _failure(home, service, "ended")
        if time.monotonic() > deadline:
            raise _failure(home, service, f"doesn't answer after {timeout_s:.0f} s")
        time.sleep(POLL_S)
    return time.time() - service.started_at


def _failure(home: Path, service: Service, what: str) -> TransientError:
    log = log_file(home, service.name)
    return TransientError(f"{service.name} {what}. The end of {log}:\n{log_tail(log)}")
