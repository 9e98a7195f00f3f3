"""The grader `process`: a score per step by a function of one's own, and an outcome over the steps."""

from collections.abc import Callable, Sequence

from tasks.grading.config import GraderConfig
from tasks.grading.own.stepwise import scorer_named
from tasks.grading.pool import shared_pool
from tasks.grading.sample import Sample
from tasks.grading.verdict import Answer, with_defaults
from tasks.grading.verifiers.steps import outcome_of, splitter
from tasks.grading.workers import Job, grade_in_workers

VERSION = "1"
DEFAULTS = {"scorer": None, "split": "blank_lines", "pattern": None, "outcome": "min", "pass_step": None}


class ProcessGrader:
    """The outcome of what `scorer` says of each step, given the prompt and the steps before it.

    Params: scorer (arithmetic, or package.module:function from (messages, steps) to a float per step; it sees all
    steps at once, so that a model may score every prefix in one batch; required), split (blank_lines, lines,
    numbered, regex with `pattern`), outcome (min, product, last, mean), pass_step (none: the score from which a step
    passes; the sample passes when all its steps do).

    `detail` holds the steps' scores. A text without steps, a scorer that raises, is stuck, ends its worker process or
    gives another number of scores than steps, is a failure.
    """

    compares_group = False

    def __init__(self, config: GraderConfig) -> None:
        self._chosen = with_defaults("process", config.params, DEFAULTS)
        self._timeout_s = config.timeout_s
        self._scorer = scorer_named(self._chosen["scorer"])
        splitter("process", self._chosen)
        outcome_of("process", self._chosen)

    @property
    def rule_version(self) -> str:
        """The grader's version and the scorer's (its attribute `version`, else 0)."""
        return f"{VERSION}/{self._chosen['scorer']}/{getattr(self._scorer, 'version', '0')}"

    def version_of(self, sample: Sample) -> str:  # noqa: ARG002 the rule is one for all
        """`process/version/scorer/its version`."""
        return f"process/{self.rule_version}"

    def grade_batch(self, samples: Sequence[Sample], progress: Callable[[int, int, str], None]) -> list[Answer]:
        """A sample whose steps can't be scored is a failure; the others are graded."""
        job = Job("tasks.grading.own.stepwise:steps", (self._chosen,), self._timeout_s)
        rows = [([dict(message) for message in sample.messages], sample.text) for sample in samples]
        return grade_in_workers(rows, job, shared_pool(), progress)

    def close(self) -> None:
        """The workers stay for the next slice."""
