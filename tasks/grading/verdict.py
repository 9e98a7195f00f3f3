"""What a verifier answers, and how it reads its parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from storage.errors import InputError


@dataclass(frozen=True)
class Verdict:
    """`score` in [0, 1]; `passed` is None where the verifier draws no line; `detail` is JSON."""

    score: float
    passed: bool | None = None
    detail: dict[str, Any] = field(default_factory=dict)


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
