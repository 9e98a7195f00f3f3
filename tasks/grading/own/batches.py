"""Samples to somebody else's program, a batch a call, some calls at once; and its answers as JSON."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from tasks.grading.own.signatures import VALUES, prompt_of
from tasks.grading.sample import Sample
from tasks.grading.verdict import Answer, Failure, Verdict
from tasks.grading.workers import Progress

LOOK_S = 0.5
KNOWN = {"score", "passed", "detail", "uncertainty", "cost", "error"}


class BatchFailed(Exception):
    """A call gave no answers. With `divisible` one of its samples may be why: each is to be tried alone."""

    def __init__(self, reason: str, *, divisible: bool = True) -> None:
        super().__init__(reason)
        self.divisible = divisible


def in_batches(
    samples: Sequence[Sample],
    call: Callable[[Sequence[Sample]], list[Answer]],
    *,
    batch_size: int,
    concurrency: int,
    stop: threading.Event,
    progress: Progress,
) -> list[Answer]:
    """One answer a sample. `stop` is set when this is interrupted: a `call` that sees it should end."""
    answers: dict[int, Answer] = {}
    places = [list(range(first, min(first + batch_size, len(samples)))) for first in range(0, len(samples), batch_size)]
    with ThreadPoolExecutor(concurrency, thread_name_prefix="own-grader") as threads:
        under_way: dict[Future[list[Answer]], list[int]] = {}

        def begin(batch: list[int]) -> None:
            under_way[threads.submit(call, [samples[place] for place in batch])] = batch

        try:
            for batch in places:
                begin(batch)
            while under_way:
                done, _ = wait(under_way, LOOK_S, FIRST_COMPLETED)
                for future in done:
                    batch = under_way.pop(future)
                    for each in _settle(future, batch, answers):
                        begin([each])
                progress(len(answers), len(samples), "rollouts")
        except BaseException:
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return [answers[place] for place in range(len(samples))]


def _settle(future: Future[list[Answer]], batch: list[int], answers: dict[int, Answer]) -> list[int]:
    """Take in the answers of a call; the places that are to be tried alone."""
    try:
        answers.update(zip(batch, future.result(), strict=True))
    except BatchFailed as failed:
        if failed.divisible and len(batch) > 1:
            return batch
        answers.update((place, Failure(str(failed))) for place in batch)
    return []


def as_json(sample: Sample) -> dict[str, Any]:
    """The sample as others get it: prompt (the last user turn), completion, and the `VALUES` by name."""
    values = {name: value(sample) for name, value in VALUES.items()}
    return {"prompt": prompt_of(sample), "completion": sample.text, **values}


def from_json(value: Any) -> Answer:
    """An answer of a number, true or false, or an object with `score` or `error`; of anything else a failure.

    The object may hold passed, detail, uncertainty and cost too; what else it holds is detail.
    """
    try:
        return _from_json(value)
    except (TypeError, ValueError) as error:
        return Failure(f"{type(error).__name__}: {error}")


def _from_json(value: Any) -> Answer:
    if isinstance(value, bool):
        return Verdict(float(value), value)
    if isinstance(value, int | float):
        return Verdict(float(value))
    if not isinstance(value, dict) or not ({"score", "error"} & set(value)):
        raise ValueError(f"it answered {str(value)[:200]!r}, expected a number or an object with score or error")
    detail = dict(value.get("detail") or {}) | {name: each for name, each in value.items() if name not in KNOWN}
    cost = float(value.get("cost") or 0.0)
    if value.get("error") is not None:
        return Failure(str(value["error"]), detail, cost)
    verdict = _from_json(value["score"]) if isinstance(value["score"], bool | int | float) else None
    if not isinstance(verdict, Verdict):
        raise ValueError(f"it answered the score {value['score']!r}, expected a number")
    passed = verdict.passed if value.get("passed") is None else bool(value["passed"])
    uncertainty = None if value.get("uncertainty") is None else float(value["uncertainty"])
    return Verdict(verdict.score, passed, detail, uncertainty, cost)
