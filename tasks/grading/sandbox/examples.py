"""The tests of a prompt, read from its parameters, pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from storage.errors import InputError
from tasks.grading.sandbox.program import standing

FORMS = (
    "source with check(candidate) or assert statements, a list of such statements, a list of [args, expected] "
    "or {args, kwargs, expected}, or a list of {stdin, stdout}"
)


@dataclass(frozen=True, slots=True)
class CallTest:
    """A call and the value that it should give."""

    name: str
    args: Sequence[Any]
    expected: Any
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True)
class ScriptTest:
    """What a script reads and what it should print."""

    stdin: str
    stdout: str


@dataclass(frozen=True, slots=True)
class SourceTests:
    """Tests that are code: one source, or statements that count one by one. `prefix` gives them helpers."""

    given: str | list[str]
    entry_point: str | None
    prefix: str

    def __len__(self) -> int:
        return 1 if isinstance(self.given, str) else len(self.given)


Tests = SourceTests | list[CallTest] | list[ScriptTest]


def tests_of(params: Mapping[str, Any]) -> Tests:
    """The tests that `tests`, `entry_point`, `prefix` and `tolerance` describe. Raises `InputError`."""
    given, name = params["tests"], params["entry_point"]
    if isinstance(given, str) and given.strip():
        return SourceTests(given, name, standing(params["prefix"]))
    if not isinstance(given, list) or not given:
        raise _unread(given)
    if all(isinstance(test, str) for test in given):
        return SourceTests(given, name, standing(params["prefix"]))
    if all(isinstance(test, dict) and set(test) == {"stdin", "stdout"} for test in given):
        return [ScriptTest(str(test["stdin"]), str(test["stdout"])) for test in given]
    if not name:
        raise InputError(
            "verifier python_code: tests of arguments and results need params.entry_point, a function's name"
        )
    return [_call_test(test, name, params["tolerance"]) for test in given]


def _call_test(test: Any, name: str, tolerance: float) -> CallTest:
    if isinstance(test, list | tuple) and len(test) == 2 and isinstance(test[0], list | tuple):
        return CallTest(name, test[0], test[1], tolerance=tolerance)
    if isinstance(test, dict) and "expected" in test and set(test) <= {"args", "kwargs", "expected"}:
        return CallTest(name, test.get("args", []), test["expected"], test.get("kwargs", {}), tolerance)
    raise _unread(test)


def _unread(found: Any) -> InputError:
    return InputError(f"verifier python_code: expected params.tests as {FORMS}; found {str(found)[:200]!r}")
