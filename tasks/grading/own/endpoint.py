"""A grader behind an HTTP address: POST {"samples": [...]} -> {"scores": [...]}."""

import os
import random
import threading
from collections.abc import Sequence
from typing import Any

import httpx

from storage.errors import InputError
from tasks.grading.config import GraderConfig
from tasks.grading.own.batches import BatchFailed, as_json, from_json, in_batches
from tasks.grading.sample import Sample
from tasks.grading.verdict import Answer
from tasks.grading.workers import Progress

OWN_PARAMS = ("headers", "version")
BACKOFF_S, LONGEST_WAIT_S = 0.5, 60.0
BUSY = 429
ABOUT_THE_SAMPLES = (400, 413, 422)
SHOWN_CHARS = 300


class EndpointGrader:
    """Posts `batch_size` samples a request, `concurrency` requests at once.

    Params: headers (header -> environment variable that holds its value), version; others are sent with each sample.
    429, 5xx and a broken connection are tried again (`retries`), after Retry-After or 0.5 s, 1 s, 2 s ...; a request
    may take the limit of all its rollouts together. Raises `InputError` for a variable that isn't set, and when the
    endpoint refuses (401, 403, 404, ...).
    """

    compares_group = False
    paid = True

    def __init__(self, config: GraderConfig) -> None:
        self._config = config
        self._sent_params = {name: value for name, value in config.params.items() if name not in OWN_PARAMS}
        self._client = httpx.Client(headers=headers_of(config), timeout=config.timeout_s)
        self._stop = threading.Event()
        self._away = False

    def version_of(self, sample: Sample) -> str:  # noqa: ARG002 it is the same for all
        """`address/version`, the version out of the params."""
        return f"{self._config.grader}/{self._config.params.get('version', 0)}"

    def grade_batch(self, samples: Sequence[Sample], progress: Progress) -> list[Answer]:
        """A request that fails leaves failures; where one sample may be why, each is sent alone first."""
        size, concurrency = self._config.batch_size, self._config.concurrency
        return in_batches(
            samples, self._ask, batch_size=size, concurrency=concurrency, stop=self._stop, progress=progress
        )

    def close(self) -> None:
        """Close the connections."""
        self._stop.set()
        self._client.close()

    def _ask(self, samples: Sequence[Sample]) -> list[Answer]:
        sent = {"samples": [as_json(sample) | {"params": self._sent_params} for sample in samples]}
        response = self._posted(sent, self._config.timeout_s * len(samples))
        if response.status_code in ABOUT_THE_SAMPLES or response.status_code >= 500 or response.status_code == BUSY:
            divisible = response.status_code in ABOUT_THE_SAMPLES
            raise BatchFailed(f"HTTP {response.status_code}: {response.text[:SHOWN_CHARS]}", divisible=divisible)
        if not response.is_success:
            raise InputError(
                f"grader {self._config.grader} answers HTTP {response.status_code}: {response.text[:SHOWN_CHARS]}; "
                "check the address and params.headers"
            )
        return [from_json(score) for score in _scores(response, len(samples))]

    def _posted(self, content: dict[str, Any], timeout_s: float) -> httpx.Response:
        """The last response, or `BatchFailed` when there was none. An endpoint known to be away is tried once."""
        attempt = 0
        while True:
            last = attempt >= self._config.retries or self._away or self._stop.is_set()
            try:
                response = self._client.post(self._config.grader, json=content, timeout=timeout_s)
            except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
                raise BatchFailed(f"TimeoutError: no answer within {timeout_s:g} s") from error
            except httpx.RequestError as error:
                if last:
                    self._away = True
                    raise BatchFailed(f"{type(error).__name__}: {error}", divisible=False) from error
                pause_s = _pause_s(attempt, None)
            else:
                self._away = False
                if last or (response.status_code != BUSY and response.status_code < 500):
                    return response
                pause_s = _pause_s(attempt, response.headers.get("retry-after"))
            self._stop.wait(pause_s)
            attempt += 1


def _pause_s(attempt: int, asked: str | None) -> float:
    if asked is not None and asked.isdigit():
        return min(float(asked), LONGEST_WAIT_S)
    return min(BACKOFF_S * 2**attempt, LONGEST_WAIT_S) * random.uniform(0.8, 1.2)


def _scores(response: httpx.Response, wanted: int) -> list[Any]:
    """The scores of a response: a list under `scores`; of a single sample its answer itself will do."""
    try:
        content = response.json()
    except ValueError as error:
        raise BatchFailed(f"the answer is no JSON: {response.text[:SHOWN_CHARS]}") from error
    if isinstance(content, dict) and "scores" in content:
        content = content["scores"]
    elif wanted == 1 and not isinstance(content, list):
        content = [content]
    if not isinstance(content, list) or len(content) != wanted:
        found = f"{len(content)} scores" if isinstance(content, list) else response.text[:SHOWN_CHARS]
        raise BatchFailed(f"the endpoint answered {found}, expected a list `scores` of {wanted}")
    return content


def headers_of(config: GraderConfig) -> dict[str, str]:
    """The headers, their values out of the environment. Raises `InputError` for a variable that isn't set."""
    named = config.params.get("headers") or {}
    if not isinstance(named, dict):
        raise InputError(f"grader {config.label}: params.headers is {named!r}, expected header: ENVIRONMENT_VARIABLE")
    missing = sorted(str(variable) for variable in named.values() if str(variable) not in os.environ)
    if missing:
        raise InputError(
            f"grader {config.label}: params.headers names environment variables that aren't set ({len(missing)}); "
            f"expected header: VARIABLE, never the value itself"
        )
    return {str(header): os.environ[str(variable)] for header, variable in named.items()}
