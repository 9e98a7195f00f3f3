"""Samples and configurations for tests of judges."""

from typing import Any

from tasks.grading.config import GraderConfig
from tasks.grading.graders import open_grader
from tasks.grading.sample import Sample
from tasks.grading.verdict import Answer

RUBRIC = '[{"criterion": "names the sea", "level": "essential"}, {"criterion": "is short", "level": "optional"}]'


def sample(text: str, rollout_id: str = "r0", prompt_id: str = "p", **changes: Any) -> Sample:
    """A rollout of a prompt with a rubric and a reference answer."""
    base = Sample(
        rollout_id=rollout_id,
        prompt_id=prompt_id,
        policy_id="policy",
        messages=[{"role": "user", "content": "Write about the sea."}],
        text=text,
        tokens=5,
        truncated=False,
        answer="The sea is wide.",
        rubric=RUBRIC,
        domain="",
        verifier="rubric",
        params={},
    )
    return base._replace(**changes)


def grader_config(grader: str, url: str, *, endpoint: dict[str, Any] | None = None, **judging: Any) -> GraderConfig:
    """A grader that is judged by the endpoint at `url`; retries come fast."""
    options = {"base_url": url, "model": "judge-1", "backoff_s": 0.01, **(endpoint or {})}
    return GraderConfig(grader=grader, from_iteration=1, judging={"endpoint": options, **judging})


def graded(config: GraderConfig, samples: list[Sample]) -> list[Answer]:
    """The answers of the grader, opened and closed."""
    grader = open_grader(config)
    try:
        return grader.grade_batch(samples, lambda done, total, label: None)
    finally:
        grader.close()
