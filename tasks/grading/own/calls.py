"""What worker processes do with functions and classes of one's own, and with verifiers: the jobs' factories. Light."""

import asyncio
import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from storage.errors import InputError, PosttrainError
from storage.plugins import import_named
from tasks.grading.lanes import FailedTogether, Lane, Prepared, failure, guarded, row_by_row
from tasks.grading.verdict import Answer, Failure, Verdict
from tasks.grading.verifiers.registry import VERIFIERS

# A row: name or dotted path of the function, its arguments by place, and by name.
Call = tuple[str, tuple[Any, ...], Mapping[str, Any]]
BEATS_PER_LIMIT = 10


def verifiers() -> Prepared:
    """Rows are `Call`s of verifiers or of functions of one's own; an async one is waited for."""
    return row_by_row(called)


def called(row: Call) -> Answer:
    """The answer of one call, in whatever process this is."""
    name, arguments, named = row
    known = VERIFIERS.get(name)
    if known is not None:
        return known.function(*arguments)
    returned = import_named("grader", name)(*arguments, **named)
    if inspect.isawaitable(returned):
        return as_answer(_loop().run(_awaited(returned)))
    return as_answer(returned)


@functools.cache
def _loop() -> asyncio.Runner:
    return asyncio.Runner()


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def concurrent(path: str, concurrency: int, timeout_s: float) -> Prepared:
    """Rows are `Call`s of one async function: so many at once, each within the limit."""
    function = import_named("grader", path)

    def prepared(rows: Sequence[Any], lane: Lane) -> tuple[Sequence[int], list[Answer]]:
        try:
            return _loop().run(_Concurrent(function, timeout_s, rows, lane).grade_all(concurrency))
        except* PosttrainError as group:
            raise group.exceptions[0] from None

    return prepared


class _Concurrent:
    """One request to an async function: what is there is sent on about once a second."""

    def __init__(self, function: Callable[..., Any], timeout_s: float, rows: Sequence[Call], lane: Lane) -> None:
        self._function, self._timeout_s, self._rows, self._lane = function, timeout_s, rows, lane
        self._unsent: dict[int, Answer] = {}

    async def grade_all(self, concurrency: int) -> tuple[Sequence[int], list[Answer]]:
        free = asyncio.Semaphore(concurrency)
        beating = asyncio.ensure_future(self._beat())
        try:
            async with asyncio.TaskGroup() as group:
                for place in range(len(self._rows)):
                    await free.acquire()
                    self._lane.begin(place)
                    group.create_task(self._one(place, free))
        finally:
            beating.cancel()
        return list(self._unsent), list(self._unsent.values())

    async def _one(self, place: int, free: asyncio.Semaphore) -> None:
        try:
            call = asyncio.ensure_future(self._call(self._rows[place]))
            done, _ = await asyncio.wait({call}, timeout=self._timeout_s)
            if not done:
                call.cancel()  # not waited for: it may refuse
                self._unsent[place] = Failure(f"TimeoutError: no answer within {self._timeout_s:g} s; it was cancelled")
            elif call.cancelled():
                self._unsent[place] = Failure("CancelledError: it cancelled itself")
            else:
                self._unsent[place] = guarded(lambda _: call.result(), None)
        finally:
            free.release()

    async def _call(self, row: Call) -> Answer:
        return as_answer(await self._function(*row[1], **row[2]))

    async def _beat(self) -> None:
        while True:
            self._lane.alive()
            if self._unsent:
                self._lane.part(list(self._unsent), list(self._unsent.values()))
                self._unsent.clear()
            await asyncio.sleep(min(1.0, self._timeout_s / BEATS_PER_LIMIT))


def batches(path: str, params: Mapping[str, Any]) -> Prepared:
    """Rows are the values of one sample by the names of `grade_batch`'s parameters; a request is one call.

    Raises `InputError` when the class can't be constructed with the parameters.
    """
    try:
        grader = import_named("grader", path)(**params)
    except PosttrainError:
        raise
    except (Exception, SystemExit) as error:  # whatever a constructor raises
        raise InputError(f"grader {path} can't be made of params {dict(params)}: {failure(error).error}") from error

    def prepared(rows: Sequence[Any], lane: Lane) -> tuple[Sequence[int], list[Answer]]:
        lane.begin(len(rows) - 1)  # any of them may be the one that is stuck
        try:
            returned = grader.grade_batch(**{name: [row[name] for row in rows] for name in rows[0]})
            if inspect.isawaitable(returned):
                returned = _loop().run(_awaited(returned))
            scores = list(returned)
            if len(scores) != len(rows):
                raise ValueError(f"grade_batch gave {len(scores)} scores to {len(rows)} samples")
        except PosttrainError:
            raise
        except (Exception, SystemExit) as error:
            raise FailedTogether from error
        return range(len(rows)), [guarded(as_answer, score) for score in scores]

    return prepared


def as_answer(returned: Any) -> Answer:
    """What somebody else's function gave, as an answer. Raises `TypeError` for what is neither number nor verdict."""
    if isinstance(returned, Failure):
        return Failure(str(returned.error), _json(returned.detail), float(returned.cost))
    if not isinstance(returned, Verdict):
        return _plain(returned)
    passed = None if returned.passed is None else bool(returned.passed)
    uncertainty = None if returned.uncertainty is None else float(returned.uncertainty)
    return Verdict(_plain(returned.score).score, passed, _json(returned.detail), uncertainty, float(returned.cost))


def _plain(returned: Any) -> Verdict:
    if isinstance(returned, bool) or type(returned).__name__ == "bool_":  # numpy's bool is no Python bool
        return Verdict(float(returned), bool(returned))
    if isinstance(returned, str | bytes) or not (hasattr(returned, "__float__") or hasattr(returned, "__index__")):
        raise TypeError(f"it returned {type(returned).__name__} {str(returned)[:80]!r}, expected a number or a Verdict")
    return Verdict(float(returned))


def _json(detail: Any) -> dict[str, Any]:
    """The detail as it will be stored. Raises `TypeError` or `ValueError` for what is no JSON object."""
    plain = json.loads(json.dumps(detail))
    if not isinstance(plain, dict):
        raise TypeError(f"a verdict's detail is {type(detail).__name__}, expected a dict")
    return plain
