"""One answer against its tests: whose turn it is, and what counts.

Only this process and the tests' own say what passed; the answer's process gives values.
"""

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.grading.sandbox.bubblewrap import Launcher
from tasks.grading.sandbox.examples import CallTest, ScriptTest, SourceTests, Tests
from tasks.grading.sandbox.inside.codec import decode, encode
from tasks.grading.sandbox.limits import Limits
from tasks.grading.sandbox.process import CONTROL_BYTES, ContainedError, Process

CALL = encode(("call", "", [], {}), 100)[:14]  # how an examiner's call begins: 4 values, of which the first is "call"


@dataclass(frozen=True, slots=True)
class Examined:
    """Which tests passed, in order, and what was wrong first. `unfit`: the tests themselves can't be run, and why."""

    passed: Sequence[bool] = ()
    error: str | None = None
    printed: str = ""
    unfit: str | None = None


class Examiners:
    """One tests' process for each thread, started when it is first needed and after one was lost."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._own = threading.local()
        self._all: set[Process] = set()

    def get(self) -> Process:
        """This thread's."""
        if getattr(self._own, "process", None) is None:
            self._own.process = self._launcher.examiner()
            self._all.add(self._own.process)
        return self._own.process

    def drop(self) -> None:
        """End this thread's, if there is one."""
        process = getattr(self._own, "process", None)
        self._own.process = None
        if process is not None:
            self._all.discard(process)
            process.close()

    def close(self) -> None:
        """End those of all threads; none of them may use its own any more."""
        while self._all:
            self._all.pop().close()


def examine(parts: Sequence[str], tests: Tests, limits: Limits, launcher: Launcher, examiners: Examiners) -> Examined:
    """Load the parts in a fresh sandbox and test them. Raises `SandboxError` when none starts."""
    answer = launcher.candidate(limits)
    deadline = time.monotonic() + limits.timeout_s
    try:
        if isinstance(tests, SourceTests):
            return _by_source(answer, parts, tests, deadline, examiners)
        return _one_by_one(answer, parts, tests, deadline)
    except ContainedError as error:
        return Examined([False] * len(tests), f"the answer {error}", answer.printed)
    finally:
        answer.close()


def _load(answer: Process, parts: Sequence[str], names: list[str], deadline: float) -> str | None:
    """What went wrong, None when nothing did."""
    return _error(answer.ask(("load", list(parts), names), deadline))


def _error(reply: tuple[Any, ...]) -> str | None:
    match reply:
        case ("done", _, _):
            return None
        case ("raised", str(kind), str(message)):
            return f"{kind}: {message}".rstrip(": ")
        case ("unportable", str(why)):
            return f"the answer returned a value {why}"
    return "the answer talked out of turn"


def _one_by_one(
    answer: Process, parts: Sequence[str], tests: Sequence[CallTest | ScriptTest], deadline: float
) -> Examined:
    """Tests of arguments and result, or of input and output, compared here."""
    scripts = isinstance(tests[0], ScriptTest)
    names = sorted({test.name for test in tests if isinstance(test, CallTest)})
    error = None if scripts else _load(answer, parts, names, deadline)
    if error:
        return Examined([False] * len(tests), error, answer.printed)
    passed: list[bool] = []
    first = None
    for test in tests:
        try:
            error = _tested(answer, "\n".join(parts), test, deadline)
        except ContainedError as contained:
            # A process that is gone can't pass what is left; what it passed before counts.
            left = [False] * (len(tests) - len(passed))
            return Examined([*passed, *left], first or f"the answer {contained}", answer.printed)
        passed.append(error is None)
        first = first or error
    return Examined(passed, first, answer.printed)


def _tested(answer: Process, program: str, test: CallTest | ScriptTest, deadline: float) -> str | None:
    if isinstance(test, ScriptTest):
        reply = answer.ask(("run", program, test.stdin), deadline)
    else:
        reply = answer.ask(("call", test.name, list(test.args), dict(test.kwargs)), deadline)
    error = _error(reply)
    if error:
        return error
    try:
        value = decode(reply[1]) if isinstance(reply[1], bytes) else None
    except ValueError:
        return "the answer talked out of turn"
    if isinstance(test, ScriptTest):
        same, expected = isinstance(value, str) and _lines(value) == _lines(test.stdout), test.stdout
        return None if same else f"wrong output for input {_short(test.stdin)}: {_short(value)}, not {_short(expected)}"
    if equal(value, test.expected, test.tolerance):
        return None
    return f"{test.name}({_short(test.args)[1:-1]}) is {_short(value)}, not {_short(test.expected)}"


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 120 else f"{text[:117]}..."


def equal(value: Any, expected: Any, tolerance: float = 0.0) -> bool:
    """Whether they are equal; a tuple equals a list of the same, for `expected` comes from JSON.

    `tolerance` is relative, and absolute below 1, for numbers anywhere inside.
    """
    if isinstance(value, list | tuple) and isinstance(expected, list | tuple):
        pairs = zip(value, expected, strict=False)
        return len(value) == len(expected) and all(equal(a, b, tolerance) for a, b in pairs)
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(equal(value[key], expected[key], tolerance) for key in value)
    if tolerance and isinstance(value, int | float) and isinstance(expected, int | float):
        try:
            return math.isclose(value, expected, rel_tol=tolerance, abs_tol=tolerance)
        except OverflowError:
            return False
    return bool(value == expected)


def _by_source(
    answer: Process, parts: Sequence[str], tests: SourceTests, deadline: float, examiners: Examiners
) -> Examined:
    """Tests that are code, run in their own process, which calls the answer through us."""
    error = _load(answer, parts, [tests.entry_point] if tests.entry_point else [], deadline)
    if error:
        return Examined([False] * len(tests), error, answer.printed)
    record = _Record()
    question = encode(("examine", tests.prefix, tests.given, tests.entry_point), CONTROL_BYTES)
    try:
        _converse(examiners.get(), answer, question, record, deadline)
    except ContainedError as contained:
        examiners.drop()  # it still waits for a reply, or never comes back
        if not record.calls:
            return Examined(unfit=f"the tests' process {contained}")
        record.errors.append(str(contained))
    left = [False] * (len(tests) - len(record.passed))
    return Examined([*record.passed, *left], next(iter(record.errors), None), answer.printed, record.unfit)


@dataclass(slots=True)
class _Record:
    """What is known of an examination so far."""

    calls: int = 0
    passed: list[bool] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    unfit: str | None = None


def _converse(examiner: Process, answer: Process, question: bytes, record: _Record, deadline: float) -> None:
    """Carry calls to the answer and values back until the tests' process says that it is done."""
    examiner.send(question, deadline)
    while True:
        frame = _from_examiner(examiner, record, deadline)
        if frame.startswith(CALL):
            record.calls += 1
            examiner.send(_from_answer(answer, frame, deadline), deadline)
            continue
        match decode(frame):
            case ("test", bool(passed), error):
                record.passed.append(passed)
                record.errors += [] if error is None else [str(error)]
            case ("unfit", str(why)):
                record.unfit = why
            case ("ended", int(code)):
                if code:
                    record.errors.append(f"the answer gave a value on which the tests' process ended with code {code}")
                return


def _from_examiner(examiner: Process, record: _Record, deadline: float) -> bytes:
    try:
        return examiner.receive(deadline)
    except ContainedError as error:
        raise ContainedError(
            f"the answer gave a value on which the tests' process {error}" if record.calls else str(error)
        ) from error


def _from_answer(answer: Process, call: bytes, deadline: float) -> bytes:
    try:
        answer.send(call, deadline)
        return answer.receive(deadline)
    except ContainedError as error:
        raise ContainedError(f"the answer {error}") from error
