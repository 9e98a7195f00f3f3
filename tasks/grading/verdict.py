"""What a grader answers, and how a verifier reads its parameters."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from storage.errors import InputError

Read = TypeVar("Read")
REMEMBERED_PARAMS = 4096


@dataclass(frozen=True, slots=True)
class Verdict:
    """A score, and what is known beside it.

    `passed` is None where the grader draws no line, `uncertainty` (a standard deviation of the score) where it doesn't
    know. `detail` is JSON. `cost` is what the answer cost, in the grader's own currency (dollars, for a hosted model).
    """

    score: float
    passed: bool | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    uncertainty: float | None = None
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A grade that couldn't be made, and why: never a zero. `detail` is JSON, such as an answer nobody could parse."""

    error: str
    detail: dict[str, Any] = field(default_factory=dict)
    cost: float = 0.0


Answer = Verdict | Failure


def checked_param(verifier: str, name: str, value: Any, fits: bool, expected: str) -> None:
    """Raises `InputError` where a parameter doesn't fit."""
    if not fits:
        raise InputError(f"verifier {verifier}: params.{name} is {value!r}; expected {expected}")


def checked_flags(verifier: str, params: Mapping[str, Any], *names: str) -> None:
    """Raises `InputError` where one of the named parameters is neither true nor false."""
    for name in names:
        checked_param(verifier, name, params[name], isinstance(params[name], bool), "true or false")


def checked_names(verifier: str, name: str, value: Any) -> tuple[str, ...]:
    """A parameter that is one name or a list of them, as a tuple. Raises `InputError` otherwise."""
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
    fits = bool(names) and all(isinstance(each, str) and each for each in names)
    checked_param(verifier, name, value, fits, "a name or a list of names")
    return names


def is_whole(value: Any, least: int = 0) -> bool:
    """Whether a parameter is a whole number from `least` on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_share(value: Any) -> bool:
    """Whether a parameter is a number in [0, 1]."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def read_once(read: Callable[[Mapping[str, Any]], Read]) -> Callable[[Mapping[str, Any]], Read]:
    """Reads the parameters of a mapping once, not once a sample: `Sample.params` are shared and never changed.

    A mapping is known by its identity; it is kept with what was read from it, so another can't take its place.
    """
    known: dict[int, tuple[Mapping[str, Any], Read]] = {}

    @functools.wraps(read)
    def remembered(params: Mapping[str, Any]) -> Read:
        found = known.get(id(params))
        if found is not None and found[0] is params:
            return found[1]
        value = read(params)
        if len(known) >= REMEMBERED_PARAMS:
            known.clear()
        known[id(params)] = (params, value)
        return value

    return remembered


def with_defaults(verifier: str, params: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters over their defaults. Raises `InputError` for one that the verifier doesn't have."""
    unknown = sorted(set(params) - set(defaults))
    if unknown:
        raise InputError(f"verifier {verifier}: unknown params {unknown}; it has {sorted(defaults)}")
    return {**defaults, **params}


def required_answer(verifier: str, answer: str | None) -> str:
    """The reference answer. Raises `ValueError`, which fails the row's grade, when there is none."""
    if answer is None:
        raise ValueError(f"verifier {verifier} compares with an answer and the prompt has none")
    return answer
