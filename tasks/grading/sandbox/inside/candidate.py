"""The answer's process: loads its code, calls its functions on arguments that it is given, and knows no test."""

from __future__ import annotations

import io
import os
import sys

from .channel import start
from .codec import UnportableError, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def main() -> None:
    """Serve until the grader is gone.

    Answers `("done", None)` to a load; `("done", value, arguments)` to a call, the arguments null where the function
    left them as they were; `("raised", type, message)` and `("unportable", why)` to either.
    """
    channel, value_bytes = start()
    channel.send(("ready",))
    answer = type(sys)("answer")
    sys.modules["answer"] = answer
    while True:
        try:
            operation, *arguments = channel.receive()
        except EOFError:
            os._exit(0)
        try:
            reply = OPERATIONS[operation](answer, *arguments, value_bytes)
        except UnportableError as error:
            reply = ("unportable", str(error))
        except BaseException as error:  # noqa: BLE001 whatever the answer raises, SystemExit too, is its result
            reply = ("raised", type(error).__name__, _message(error))
        channel.send(reply)


def _load(answer: Any, parts: list[str], names: list[str], _limit: int) -> tuple[Any, ...]:
    """Run the parts of the program in one module, then look that it defines the names."""
    for part in parts:
        exec(compile(part, "<answer>", "exec"), answer.__dict__)
    for name in names:
        if not callable(answer.__dict__.get(name)):
            raise NameError(f"the answer defines no function {name}")
    return ("done", None, None)


def _call(answer: Any, name: str, args: list[Any], kwargs: dict[str, Any], limit: int) -> tuple[Any, ...]:
    before = encode((args, kwargs), limit)
    if name not in answer.__dict__:
        raise NameError(f"the answer defines no {name}")
    value = encode(answer.__dict__[name](*args, **kwargs), limit)
    try:
        after = encode((args, kwargs), limit)
    except UnportableError:
        after = before
    return ("done", value, None if after == before else after)


def _run(_answer: Any, program: str, given: str, limit: int) -> tuple[Any, ...]:
    """Run the program as a script that reads `given`; its standard output is the value."""
    known = sys.stdin, sys.stdout
    sys.stdin, sys.stdout = io.TextIOWrapper(io.BytesIO(given.encode())), io.TextIOWrapper(io.BytesIO())
    try:
        exec(compile(program, "<answer>", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        if ended.code not in (None, 0):
            raise
    finally:
        written = sys.stdout
        sys.stdin, sys.stdout = known
    written.flush()
    return ("done", encode(written.buffer.getvalue().decode(errors="replace"), limit), None)


OPERATIONS: dict[str, Callable[..., tuple[Any, ...]]] = {"load": _load, "call": _call, "run": _run}


def _message(error: BaseException) -> str:
    try:
        return str(error)[:500]
    except BaseException:  # noqa: BLE001 an answer's own __str__
        return ""
