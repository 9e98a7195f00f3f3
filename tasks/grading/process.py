"""The grader `process`: a score per step by a function of one's own, and an outcome over the steps."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from storage.errors import InputError, PosttrainError
from storage.plugins import import_named
from tasks.grading.config import GraderConfig
from tasks.grading.sample import Sample
from tasks.grading.verdict import Answer, Failure, Verdict, with_defaults
from tasks.grading.verifiers.steps import arithmetic, outcome_of, splitter, step_verdict

log = logging.getLogger(__name__)
VERSION = "1"
DEFAULTS = {"scorer": None, "split": "blank_lines", "pattern": None, "outcome": "min", "pass_step": None}
PROGRESS_ROWS = 100
StepScorer = Callable[[Sequence[Mapping[str, str]], list[str]], Sequence[float]]
SCORERS: dict[str, StepScorer] = {"arithmetic": lambda _messages, parts: arithmetic(parts)}


class ProcessGrader:
    """The outcome of what `scorer` says of each step, given the prompt and the steps before it.

    Params: scorer (arithmetic, or package.module:function from (messages, steps) to a float per step; it sees all
    steps at once, so that a model may score every prefix in one batch; required), split (blank_lines, lines,
    numbered, regex with `pattern`), outcome (min, product, last, mean), pass_step (none: the score from which a step
    passes; the sample passes when all its steps do).

    `detail` holds the steps' scores. A text without steps, a scorer that raises, or that gives another number of
    scores than steps, is a failure.
    """

    compares_group = False

    def __init__(self, config: GraderConfig) -> None:
        chosen = with_defaults("process", config.params, DEFAULTS)
        self._scorer_name = chosen["scorer"]
        self._scorer = _scorer(chosen["scorer"])
        self._split = splitter("process", chosen)
        self._outcome = outcome_of("process", chosen)
        self._pass_step = chosen["pass_step"]

    @property
    def rule_version(self) -> str:
        """The grader's version and the scorer's (its attribute `version`, else 0)."""
        return f"{VERSION}/{self._scorer_name}/{getattr(self._scorer, 'version', '0')}"

    def version_of(self, sample: Sample) -> str:  # noqa: ARG002 the rule is one for all
        """`process/version/scorer/its version`."""
        return f"process/{self.rule_version}"

    def grade_batch(self, samples: Sequence[Sample], progress: Callable[[int, int, str], None]) -> list[Answer]:
        """A sample whose steps can't be scored is a failure; the others are graded."""
        answers: list[Answer] = []
        for done, sample in enumerate(samples):
            answers.append(self._grade(sample))
            if done % PROGRESS_ROWS == 0:
                progress(done, len(samples), "rollouts")
        return answers

    def close(self) -> None:
        """Nothing is held."""

    def _grade(self, sample: Sample) -> Answer:
        parts = self._split(sample.text)
        try:
            scores = [float(score) for score in self._scorer(sample.messages, parts)]
            return self._verdict(parts, scores)
        except PosttrainError:
            raise
        except Exception as error:
            # The boundary at which somebody else's code fails: its row says so, the others are graded.
            log.debug("scorer %s failed on rollout %s", self._scorer_name, sample.rollout_id, exc_info=True)
            return Failure(f"{type(error).__name__}: {error}", {"parts": len(parts)})

    def _verdict(self, parts: Sequence[str], scores: Sequence[float]) -> Answer:
        if len(scores) != len(parts):
            return Failure(f"the scorer gave {len(scores)} scores to {len(parts)} steps")
        if not all(map(math.isfinite, scores)):
            return Failure(f"the scorer gave {list(scores)}, expected finite numbers")
        found = step_verdict(scores, self._outcome)
        if self._pass_step is None:
            return found
        return Verdict(found.score, all(score >= self._pass_step for score in scores), found.detail)


def _scorer(name: Any) -> StepScorer:
    if name in SCORERS:
        return SCORERS[name]
    if not isinstance(name, str) or ":" not in name:
        raise InputError(
            f"process: params.scorer is {name!r}, expected {', '.join(SCORERS)} or package.module:function"
        )
    return import_named("scorer", name)
