"""A job API over HTTP: POST a sample to get an id, GET the id to get the answer.

`POST <url>` with a sample as JSON gives `{"id": ...}`; its header `Idempotency-Key` is a hash of the content, so that
a repeated request needn't make a second job. `GET <url>/<id>` gives 202 or `{"status": "pending"}` (queued, running)
while it works, then `{"score": ...}` with what else a verdict has, or `{"error": "..."}`.
"""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from urllib.parse import quote

import httpx

from storage.errors import InputError
from tasks.grading.deferred import Handed, NotTaken, answer_of, request_of
from tasks.grading.keys import row_key
from tasks.grading.sample import Sample
from tasks.grading.verdict import Answer, Failure

log = logging.getLogger(__name__)
WORKING = frozenset({"pending", "queued", "running"})
REFUSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
BUSY = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
GONE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
SHOWN_CHARS = 300


class HttpJobs:
    """Asks a job API, a few requests at once; the bearer key comes from the environment variable `key_env`."""

    def __init__(self, url: str | None, key_env: str | None, timeout_s: float, at_once: int) -> None:
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            raise InputError(f"grader http_jobs: params.url is {url!r}, expected an address: http:// or https://")
        if key_env is not None and not os.environ.get(key_env):
            raise InputError(f"grader http_jobs: the environment variable {key_env} (params.key_env) isn't set")
        headers = {"Authorization": f"Bearer {os.environ[key_env]}"} if key_env else {}
        self._url, self._headers = url.rstrip("/"), headers
        self._timeout_s, self._at_once = float(timeout_s), max(1, int(at_once))

    def submit(self, samples: Sequence[Sample]) -> list[Handed]:
        """A ticket a sample. Raises `InputError` where the API refuses access."""
        with self._client() as client, ThreadPoolExecutor(self._at_once) as pool:
            return list(pool.map(lambda sample: self._post(client, sample), samples))

    def collect(self, tickets: Sequence[str]) -> dict[str, Answer]:
        """The answers that are there; a job that nobody could be asked about stays open."""
        with self._client() as client, ThreadPoolExecutor(self._at_once) as pool:
            answers = pool.map(lambda ticket: self._get(client, ticket), tickets)
            return {ticket: answer for ticket, answer in zip(tickets, answers, strict=True) if answer is not None}

    def _client(self) -> httpx.Client:
        return httpx.Client(headers=self._headers, timeout=self._timeout_s)

    def _post(self, client: httpx.Client, sample: Sample) -> Handed:
        try:
            reply = client.post(self._url, json=request_of(sample), headers={"Idempotency-Key": row_key(sample)})
        except httpx.RequestError as error:
            return NotTaken(f"{self._url}: {type(error).__name__} {error}")
        if reply.status_code in REFUSED:
            raise InputError(f"grader http_jobs: {self._url} refuses access ({reply.status_code}); set params.key_env")
        if reply.status_code in BUSY or reply.is_server_error:
            return NotTaken(f"{self._url}: {_shown(reply)}")
        job = _json(reply).get("id") if reply.is_success else None
        if not isinstance(job, str | int) or job == "":
            return Failure(f"{self._url} gave no id: {_shown(reply)}")
        return str(job)

    def _get(self, client: httpx.Client, ticket: str) -> Answer | None:
        try:
            reply = client.get(f"{self._url}/{quote(ticket, safe='')}")
        except httpx.RequestError as error:
            log.warning("job %s stays open: %s %s", ticket, type(error).__name__, error)
            return None
        if reply.status_code in GONE:
            return Failure(f"{self._url} knows no job {ticket}: {_shown(reply)}")
        if reply.is_success and reply.status_code != HTTPStatus.ACCEPTED:
            document = _json(reply)
            return None if document.get("status") in WORKING else answer_of(document)
        if reply.status_code != HTTPStatus.ACCEPTED:
            log.warning("job %s stays open: %s", ticket, _shown(reply))
        return None


def _json(reply: httpx.Response) -> dict[str, object]:
    """The reply's document; one that is none, or no mapping, under a key that nobody asks for."""
    try:
        document = reply.json()
    except ValueError:
        document = reply.text[:SHOWN_CHARS]
    return document if isinstance(document, dict) else {"reply": document}


def _shown(reply: httpx.Response) -> str:
    return f"{reply.status_code} {reply.text[:SHOWN_CHARS]}"
