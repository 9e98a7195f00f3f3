"""Rubrics as rewards (arXiv 2507.17746): criteria with weights, judged one by one or in one score."""

import functools
import json
import re
from collections.abc import Iterable, Sequence

from pydantic import TypeAdapter, ValidationError

from tasks.grading.judges.config import CriterionConfig, JudgeConfig, check_weights, scale
from tasks.grading.judges.parsing import met_of, points_of, verdict_of, why
from tasks.grading.judges.prompts import Question, ask, conversation
from tasks.grading.sample import Sample
from tasks.grading.verdict import Verdict

POINTS = 10
BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.)])\s+")
_CRITERIA = TypeAdapter(list[CriterionConfig])

EXPLICIT = """Say of each criterion whether the answer meets it. A criterion that is met in part is not met.

The criteria:
{criteria}"""
IMPLICIT = """Give the answer one score from 1 (meets nothing that matters) to {points} (meets everything), in view of
all criteria and of how much each of them weighs.

The criteria, with their weights:
{criteria}"""
REASONS = {"type": "string"}


@functools.lru_cache(maxsize=4096)
def parse_rubric(text: str) -> tuple[CriterionConfig, ...]:
    """A prompt's rubric: a JSON list of {criterion, level or weight}, or plain text with one criterion a line.

    A line's bullet or number is left out; plain criteria are essential. Raises `ValueError` for what is neither.
    """
    if text.lstrip().startswith(("[", "{")):
        criteria = _from_json(text)
    else:
        lines = [BULLET.sub("", line).strip() for line in text.splitlines()]
        criteria = [CriterionConfig(criterion=line) for line in lines if line]
    if not criteria:
        raise ValueError("the prompt's rubric is empty")
    check_weights(criteria)
    return tuple(criteria)


def _from_json(text: str) -> list[CriterionConfig]:
    try:
        return _CRITERIA.validate_python(json.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the list"
        raise ValueError(f"the prompt's rubric: {where}: {first['msg'].removeprefix('Value error, ')}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the prompt's rubric begins like JSON and isn't: {error}") from None


def criteria_of(sample: Sample, judging: JudgeConfig) -> Sequence[CriterionConfig]:
    """The prompt's own criteria, else the configuration's. Raises `ValueError` when there are none."""
    if sample.rubric and sample.rubric.strip():
        return parse_rubric(sample.rubric)
    if not judging.criteria:
        raise ValueError("the prompt has no rubric, and judging.criteria is empty")
    return judging.criteria


def rubric_question(sample: Sample, judging: JudgeConfig, control_tokens: Iterable[str] = ()) -> Question:
    """What the judge is asked of one answer. Raises `ValueError` for a rubric that is none."""
    criteria = criteria_of(sample, judging)
    explicit = judging.rubric == "explicit"
    listed = "\n".join(
        f"{number}. {' '.join(criterion.criterion.split())}" + ("" if explicit else f" (weight {criterion.value:g})")
        for number, criterion in enumerate(criteria, 1)
    )
    parts = [("prompt", conversation(sample.messages)), ("answer", sample.text)]
    put = functools.partial(ask, instructions=judging.instructions, control_tokens=control_tokens)
    if explicit:
        row = {"number": {"type": "integer"}, "why": REASONS, "met": {"type": "boolean"}}
        required = {"type": "object", "properties": row, "required": list(row), "additionalProperties": False}
        example = [{"number": 1, "why": "one short sentence", "met": True}]
        return put(
            EXPLICIT.format(criteria=listed),
            parts,
            {"criteria": {"type": "array", "items": required}},
            {"criteria": [*example, "... every criterion once, in order"] if len(criteria) > 1 else example},
        )
    points = scale(judging, POINTS)
    return put(
        IMPLICIT.format(criteria=listed, points=points),
        parts,
        {"why": REASONS, "score": {"type": "integer", "minimum": 1, "maximum": points}},
        {"why": "a few sentences", "score": points // 2},
    )


def rubric_verdict(answer: str, question: Question, sample: Sample, judging: JudgeConfig) -> Verdict:
    """The grade that a judge's answer stands for. Raises `Unparsable`."""
    found = verdict_of(answer, question)
    if judging.rubric == "implicit":
        return Verdict(points_of(found, scale(judging, POINTS)), detail={"said": found["score"], **why(found)})
    criteria = criteria_of(sample, judging)
    met = met_of(found, len(criteria))
    return Verdict(rubric_score([criterion.value for criterion in criteria], met), detail={"met": met})


def rubric_score(weights: Sequence[float], met: Sequence[bool]) -> float:
    """r = sum_j w_j c_j / sum_j w_j, in [0, 1] (arXiv 2507.17746, equation 1).

    A negative weight takes off and stays out of the denominator, so that an answer which does everything right gets 1;
    below 0 is 0.
    """
    gained = sum(weight for weight, yes in zip(weights, met, strict=True) if yes)
    possible = sum(weight for weight in weights if weight > 0)
    return min(1.0, max(0.0, gained / possible))
