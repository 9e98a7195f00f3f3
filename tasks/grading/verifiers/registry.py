"""The verifiers by name: pure functions of a rollout's text, the prompt's answer and parameters.

One's own is a function of the same form, named `package.module:function` in the configuration or in a prompt. Packages
that take long to import are imported by the verifiers that need them, when they first grade.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from storage.errors import InputError
from storage.plugins import import_named
from tasks.grading.sample import Sample
from tasks.grading.sandbox import grader as sandboxed
from tasks.grading.verdict import Verdict
from tasks.grading.verifiers.episodes import episode
from tasks.grading.verifiers.haiku import haiku
from tasks.grading.verifiers.language import language
from tasks.grading.verifiers.mathematics import mathematical
from tasks.grading.verifiers.numbers import number
from tasks.grading.verifiers.procedural import reasoning_gym
from tasks.grading.verifiers.repetition import repetition
from tasks.grading.verifiers.steps import steps
from tasks.grading.verifiers.structured import json, tagged
from tasks.grading.verifiers.text import exact_match, length, normalised_match, regex


class Verifier(NamedTuple):
    """A verifier and the version of its rule: raise it when the same text should get another score.

    The function takes (text, answer, params), or the sample itself where `whole_sample` says so.
    """

    function: Callable[..., Verdict]
    version: str
    whole_sample: bool = False

    def verify(self, sample: Sample) -> Verdict:
        """The verdict on a sample. Raises what the function raises."""
        if self.whole_sample:
            return self.function(sample)
        return self.function(sample.text, sample.answer, sample.params)


VERIFIERS: dict[str, Verifier] = {
    "haiku": Verifier(haiku, "1"),
    "exact_match": Verifier(exact_match, "1"),
    "normalised_match": Verifier(normalised_match, "1"),
    "number": Verifier(number, "1"),
    "regex": Verifier(regex, "2"),
    "length": Verifier(length, "1", whole_sample=True),
    "math": Verifier(mathematical, "1"),
    "json": Verifier(json, "1"),
    "format": Verifier(tagged, "1"),
    "language": Verifier(language, "1"),
    "repetition": Verifier(repetition, "1"),
    "reasoning_gym": Verifier(reasoning_gym, "1"),
    "episode": Verifier(episode, "1"),
    "steps": Verifier(steps, "1"),
    sandboxed.NAME: Verifier(sandboxed.python_code, sandboxed.VERSION),
}


def resolve_verifier(name: str) -> Verifier:
    """The verifier of that name or dotted path.

    A function's attribute `version` is its version (default '0'), its attribute `whole_sample` says that it takes the
    `Sample`. Raises `InputError` when there is none.
    """
    if name in VERIFIERS:
        return VERIFIERS[name]
    if ":" not in name:
        raise InputError(f"no verifier {name!r}; there are {', '.join(VERIFIERS)}, or give package.module:function")
    function: Any = import_named("verifier", name)
    version, whole_sample = getattr(function, "version", "0"), getattr(function, "whole_sample", False)
    return Verifier(function, str(version), bool(whole_sample))
