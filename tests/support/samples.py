"""Samples and graders for tests of grading, without stages."""

from tasks.grading.config import GraderConfig
from tasks.grading.graders import open_grader
from tasks.grading.sample import Sample
from tasks.grading.verdict import Answer

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "What is 6 x 7?"}]


def sample(text: str, number: int = 0, *, verifier: str = "", answer: str | None = "42", params=None) -> Sample:
    return Sample(
        f"r{number}",
        "p",
        "policy",
        MESSAGES,
        text,
        len(text.split()),
        False,
        answer,
        None,
        "maths",
        verifier,
        params or {},
    )


def answers_of(grader: str, texts: list[str], progress=None, **config) -> list[Answer]:
    """What a grader named as in a run file answers to texts."""
    spec = GraderConfig(grader=grader, name="endpoint" if "://" in grader else None, **config)
    samples = [sample(text, i, verifier=grader, params=spec.params) for i, text in enumerate(texts)]
    opened = open_grader(spec)
    try:
        return opened.grade_batch(samples, progress or (lambda done, total, label: None))
    finally:
        opened.close()
