"""A scale against the prompt's reference answer (Ref-Likert in arXiv 2507.17746)."""

from collections.abc import Iterable

from tasks.grading.judges.config import JudgeConfig, scale
from tasks.grading.judges.parsing import points_of, verdict_of, why
from tasks.grading.judges.prompts import Question, ask, conversation
from tasks.grading.sample import Sample
from tasks.grading.verdict import Verdict, required_answer

POINTS = 5
TASK = """Give the answer one score from 1 to {points}, measured by the reference answer, which is right and complete:
1: wrong, or about something else. {points}: says all that the reference says, as well or better. An answer may be
worded in another way, and is not better for being longer."""


def reference_question(sample: Sample, judging: JudgeConfig, control_tokens: Iterable[str] = ()) -> Question:
    """What the judge is asked of one answer. Raises `ValueError` for a prompt without a reference answer."""
    reference = required_answer("reference_judge", sample.answer)
    points = scale(judging, POINTS)
    return ask(
        TASK.format(points=points),
        [("prompt", conversation(sample.messages)), ("reference", reference), ("answer", sample.text)],
        {"why": {"type": "string"}, "score": {"type": "integer", "minimum": 1, "maximum": points}},
        {"why": "a few sentences", "score": max(1, points // 2)},
        instructions=judging.instructions,
        control_tokens=control_tokens,
    )


def reference_verdict(answer: str, question: Question, sample: Sample, judging: JudgeConfig) -> Verdict:  # noqa: ARG001
    """(score - 1) / (points - 1). Raises `Unparsable`."""
    found = verdict_of(answer, question)
    return Verdict(points_of(found, scale(judging, POINTS)), detail={"said": found["score"], **why(found)})
