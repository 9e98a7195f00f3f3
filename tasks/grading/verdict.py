"""What a grader answers, and how a verifier reads its parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from storage.errors import InputError


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
VerifierFunction = Callable[[str, str | None, Mapping[str, Any]], Verdict]


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
