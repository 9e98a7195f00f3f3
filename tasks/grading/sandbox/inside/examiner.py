"""The tests' process: runs them against a stand-in of the answer's function, whose calls are made elsewhere.

It serves many examinations, each in a fork of its own, so that no test sees what another left.
"""

import ast
import builtins
import os
import sys
from collections.abc import Sequence
from typing import Any

from .channel import Channel, start
from .codec import UnportableKindError, decode


class UnfitTestsError(BaseException):
    """The tests themselves can't be run: nothing is known of the answer. No test's `except Exception` takes it."""


class AnswerError(Exception):
    """What the answer raised, where it is no built-in exception."""


class Remote:
    """Stands for a function of the answer: sends the arguments and gives what comes back."""

    def __init__(self, name: str, channel: Channel, calls: list[str]) -> None:
        self.__name__ = name
        self._channel, self._calls = channel, calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function's value; its changes to mutable arguments are made here too."""
        try:
            self._channel.send(("call", self.__name__, list(args), kwargs))
        except UnportableKindError as error:
            raise UnfitTestsError(f"the tests give {self.__name__} an argument {error}") from error
        self._calls.append(self.__name__)  # before the reply: one that can't be read is the answer's fault
        kind, *rest = self._channel.receive()
        if kind == "raised":
            raise _exception(*rest)
        if kind == "unportable":
            raise AnswerError(f"{self.__name__} returned a value {rest[0]}")
        value, after = rest
        if after is not None:
            changed_args, changed_kwargs = decode(after)
            take_over(list(args), changed_args)
            take_over(kwargs, changed_kwargs)
        return decode(value)


def _exception(name: str, message: str) -> Exception:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(message)
        except TypeError:  # UnicodeDecodeError and its like take more than a message
            pass
    return AnswerError(f"{name}: {message}")


def take_over(old: Any, new: Any) -> None:
    """Make mutable `old` equal to `new` in place, as far down as both have the same shape."""
    if isinstance(old, list) and isinstance(new, list):
        if len(old) == len(new):
            new = [_merged(a, b) for a, b in zip(old, new, strict=True)]
        old[:] = new
    elif isinstance(old, dict) and isinstance(new, dict):
        new = {key: _merged(old.get(key), value) for key, value in new.items()}
        old.clear()
        old.update(new)
    elif isinstance(old, set) and isinstance(new, set):
        old.clear()
        old.update(new)
    elif isinstance(old, bytearray) and isinstance(new, bytearray):
        old[:] = new
    elif isinstance(old, tuple) and isinstance(new, tuple):
        for a, b in zip(old, new, strict=False):
            take_over(a, b)


def _merged(old: Any, new: Any) -> Any:
    if type(old) is type(new) and isinstance(old, list | dict | set | bytearray):
        take_over(old, new)
        return old
    return new


def free_names(source: str, known: set[str]) -> list[str]:
    """The names that the source reads and neither it nor `known` nor Python defines."""
    read: set[str] = set()
    bound = known | set(dir(builtins))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return sorted(read - bound)


def examine(channel: Channel, prefix: str, tests: str | Sequence[str], entry_point: str | None) -> None:
    """Send `("test", passed, error)` after each test. Raises `UnfitTestsError`."""
    calls: list[str] = []
    statements = [tests] if isinstance(tests, str) else list(tests)
    namespace: dict[str, Any] = {"__name__": "tests"}
    try:
        exec(compile(prefix, "<prefix>", "exec"), namespace)
        names = free_names("\n".join(statements), set(namespace) - {entry_point})
        programs = [compile(statement, "<tests>", "exec") for statement in statements]
    except Exception as error:
        raise UnfitTestsError(f"the tests can't be run: {type(error).__name__}: {error}") from error
    for name in {*names, *([entry_point] if entry_point else [])}:
        namespace[name] = Remote(name, channel, calls)
    namespace.setdefault("candidate", namespace.get(entry_point or ""))
    passed = []
    for program in programs:
        wrong = _run(program, namespace, entry_point, isinstance(tests, str))
        if wrong and not calls:
            raise UnfitTestsError(f"the tests fail before they call the answer: {wrong}")
        passed.append(wrong is None)
        channel.send(("test", wrong is None, wrong))
    if all(passed) and not calls:
        raise UnfitTestsError("the tests pass without calling the answer")


def _run(program: Any, namespace: dict[str, Any], entry_point: str | None, whole: bool) -> str | None:
    """What went wrong, None when nothing did."""
    try:
        exec(program, namespace)
        if whole and callable(namespace.get("check")):
            namespace["check"](namespace.get(entry_point or ""))
    except (Exception, SystemExit) as error:  # noqa: BLE001 a test says by an exception that it failed
        return f"{type(error).__name__}: {str(error)[:500]}".rstrip(": ")
    return None


def main() -> None:
    """Serve examinations until the grader is gone."""
    channel, _ = start()
    channel.send(("ready",))
    while True:
        try:
            _operation, prefix, tests, entry_point = channel.receive()
        except EOFError:
            os._exit(0)
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            channel.send(("ended", os.waitstatus_to_exitcode(status)))
            continue
        try:
            examine(channel, prefix, tests, entry_point)
        except UnfitTestsError as error:
            channel.send(("unfit", str(error)))
        sys.stderr.flush()
        os._exit(0)
