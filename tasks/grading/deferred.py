"""Graders whose answers come later: what they are, and those that a run file can name."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from storage.errors import InputError
from storage.plugins import import_named
from tasks.grading.config import FOLDER, HTTP_JOBS, GraderConfig
from tasks.grading.sample import Sample
from tasks.grading.verdict import Answer, Failure, Verdict, with_defaults

SHOWN_CHARS = 2000


@dataclass(frozen=True, slots=True)
class NotTaken:
    """A sample that couldn't be handed over now, and may be the next time."""

    error: str


Handed = str | Failure | NotTaken


class DeferredGrader(Protocol):
    """Takes samples now and has their answers later.

    Of one's own: a class at `package.module:Class` with these two methods, made with the configuration's `params` as
    keyword arguments; its `version` (a string, '0' without one) is raised when the same text should get another score.
    """

    def submit(self, samples: Sequence[Sample]) -> Sequence[Handed]:
        """A ticket a sample, in their order; what can't be graded is a `Failure`."""
        ...

    def collect(self, tickets: Sequence[str]) -> Mapping[str, Answer]:
        """The answers that are there; a ticket that isn't among them is still open."""
        ...


def open_deferred(config: GraderConfig) -> DeferredGrader:
    """The slow grader that a configuration names. Raises `InputError` for one that can't be made."""
    if config.grader in DEFERRED:
        return DEFERRED[config.grader](config.params)
    made = import_named("slow grader", config.grader)
    try:
        grader: DeferredGrader = made(**config.params)
    except TypeError as error:
        raise InputError(f"slow grader {config.grader}: can't be made with params {config.params}: {error}") from error
    for method in ("submit", "collect"):
        if not callable(getattr(grader, method, None)):
            raise InputError(f"slow grader {config.grader}: no method {method}; it needs submit and collect")
    return grader


def version_of(config: GraderConfig) -> str:
    """`name/version` of a slow grader's rule. Raises `InputError` when there is no such grader."""
    if config.grader in DEFERRED:
        return f"{config.grader}/1"
    return f"{config.grader}/{getattr(import_named('slow grader', config.grader), 'version', '0')}"


def request_of(sample: Sample) -> dict[str, Any]:
    """What somebody who grades needs to know of a sample, as JSON."""
    return {
        "messages": [dict(message) for message in sample.messages],
        "text": sample.text,
        "answer": sample.answer,
        "rubric": sample.rubric,
        "domain": sample.domain,
        "truncated": sample.truncated,
    }


def answer_of(document: Any) -> Answer:
    """The answer in a JSON document: `score` and the rest of a `Verdict`, or `error`; else a failure."""
    if isinstance(document, dict) and isinstance(document.get("error"), str):
        return Failure(document["error"], cost=_number(document.get("cost")) or 0.0)
    score = _number(document.get("score")) if isinstance(document, dict) else None
    if score is None:
        text = json.dumps(document)[:SHOWN_CHARS]
        return Failure("the answer has no number 'score', nor a text 'error'", {"answer": text})
    passed, detail = document.get("passed"), document.get("detail")
    return Verdict(
        score,
        passed if isinstance(passed, bool) else None,
        detail if isinstance(detail, dict) else {},
        _number(document.get("uncertainty")),
        _number(document.get("cost")) or 0.0,
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _folder(params: Mapping[str, Any]) -> DeferredGrader:
    from tasks.grading.deferred_folder import FolderGrader

    chosen = with_defaults(FOLDER, params, {"folder": None})
    return FolderGrader(chosen["folder"])


def _http_jobs(params: Mapping[str, Any]) -> DeferredGrader:
    from tasks.grading.deferred_http import HttpJobs

    defaults = {"url": None, "key_env": None, "timeout_s": 30.0, "at_once": 8}
    return HttpJobs(**with_defaults(HTTP_JOBS, params, defaults))


DEFERRED: dict[str, Callable[[Mapping[str, Any]], DeferredGrader]] = {FOLDER: _folder, HTTP_JOBS: _http_jobs}
