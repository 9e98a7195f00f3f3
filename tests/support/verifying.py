"""A verifier called on one text."""

from tasks.grading.sample import Sample
from tasks.grading.verdict import Verdict
from tasks.grading.verifiers.registry import resolve_verifier


def verify(name: str, text: str, answer: str | None = None, *, tokens: int = 0, **params) -> Verdict:
    """The verdict of the verifier `name` on a text, through the sample that a grader would give it."""
    sample = Sample("r", "p", "policy", [], text, tokens, False, answer, None, "test", name, params)
    return resolve_verifier(name).verify(sample)
