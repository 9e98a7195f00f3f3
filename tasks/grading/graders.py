"""What a grader is, and the graders by the name that a run file gives."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tasks.grading.addresses import ADDRESS
from tasks.grading.config import COMMAND, GraderConfig
from tasks.grading.judges.config import JUDGES
from tasks.grading.judges.grader import judge_rules, open_judge
from tasks.grading.majority import MajorityGrader
from tasks.grading.own.command import CommandGrader
from tasks.grading.own.endpoint import EndpointGrader
from tasks.grading.own.functions import AsyncGrader, ClassGrader, call_of
from tasks.grading.own.signatures import form_of, imported
from tasks.grading.pool import shared_pool
from tasks.grading.process import ProcessGrader
from tasks.grading.resources import Resources
from tasks.grading.sample import Sample
from tasks.grading.sandbox import grader as python_code
from tasks.grading.verdict import Answer
from tasks.grading.verifiers.registry import VERIFIERS, resolve_verifier
from tasks.grading.workers import Job, Progress, grade_in_workers


class Grader(Protocol):
    """Says how good samples are: one answer a sample, in their order.

    An answer depends on its own sample alone, unless the grader compares the samples of a prompt
    (`compares_group`): those come together then. What the grader can't grade is a `Failure`; `InputError` is for what
    is wrong with the configuration. Opened once for a slice of rollouts, closed after it.

    A grader whose answer costs more than looking it up (money, a model's seconds) says so by an attribute `paid`: its
    answers are kept and found again, unless `cached` in its configuration says otherwise.
    """

    compares_group: bool

    def version_of(self, sample: Sample) -> str:
        """The rule that grades this sample and its version: raised when the same text should get another score."""
        ...

    def grade_batch(self, samples: Sequence[Sample], progress: Progress) -> list[Answer]:
        """One answer a sample."""
        ...

    def close(self) -> None:
        """Free what grading held."""
        ...


class VerifierGrader:
    """Grades by verifiers and by functions of one's own, in worker processes.

    A verifier that is a grader too (`GRADERS`) gets its samples at once, in this process.
    """

    compares_group = False

    def __init__(self, config: GraderConfig) -> None:
        self._config = config
        self._opened: dict[str, Grader] = {}

    def version_of(self, sample: Sample) -> str:
        """`name/version` of the sample's verifier."""
        return f"{sample.verifier}/{resolve_verifier(sample.verifier).version}"

    def grade_batch(self, samples: Sequence[Sample], progress: Progress) -> list[Answer]:
        """A verifier that fails on a sample, is stuck or ends its process, leaves a failure; the others are graded."""
        answers: dict[int, Answer] = {}
        for name in sorted({sample.verifier for sample in samples} & set(GRADERS)):
            places = [place for place, sample in enumerate(samples) if sample.verifier == name]
            chosen = [samples[place] for place in places]
            answers |= zip(places, self._grader(name).grade_batch(chosen, progress), strict=True)
        places = [place for place in range(len(samples)) if place not in answers]
        rows = [call_of(samples[place]) for place in places]
        job = Job("tasks.grading.own.calls:verifiers", timeout_s=self._config.timeout_s)
        answers |= zip(places, grade_in_workers(rows, job, shared_pool(), progress), strict=True)
        return [answers[place] for place in range(len(samples))]

    def close(self) -> None:
        """Close the graders that verifiers named; the workers stay for the next slice."""
        for grader in self._opened.values():
            grader.close()
        self._opened.clear()

    def _grader(self, name: str) -> Grader:
        if name not in self._opened:
            self._opened[name] = GRADERS[name](self._config)
        return self._opened[name]


# What `grader` names -> how it is opened. A name that isn't here is a verifier's, or of one's own.
GRADERS: dict[str, Callable[[GraderConfig], Grader]] = {
    python_code.NAME: python_code.CodeGrader,
    "majority": MajorityGrader,
    "process": ProcessGrader,
    COMMAND: CommandGrader,
}
# Of those that are no verifiers, the version of the rule.
RULE_VERSIONS: dict[str, Callable[[GraderConfig], str]] = {
    "majority": lambda config: MajorityGrader(config).rule_version,
    "process": lambda config: ProcessGrader(config).rule_version,
    COMMAND: lambda config: str(config.params.get("version", "0")),
}


def open_grader(config: GraderConfig, resources: Resources | None = None) -> Grader:
    """The grader that a configuration names. `resources`: what it may borrow; by default nothing.

    Raises `InputError` for one of one's own that can't be used.
    """
    if config.grader in JUDGES:
        return open_judge(config, resources or Resources())
    if config.grader in GRADERS:
        return GRADERS[config.grader](config)
    if ADDRESS.match(config.grader):
        return EndpointGrader(config)
    if ":" not in config.grader or config.grader in VERIFIERS:
        return VerifierGrader(config)
    named = imported(config.grader)
    if isinstance(named, type):
        return ClassGrader(config, named)
    return AsyncGrader(config) if form_of(config.grader, named).is_async else VerifierGrader(config)


def version_of_grader(config: GraderConfig) -> Any:
    """The version of the rule that a configuration names, whatever kind of grader it is; not of `verifier`.

    Raises `InputError` for a name or params that there aren't.
    """
    if config.judging is not None:
        return judge_rules(config.judging)
    if config.grader in RULE_VERSIONS:
        return RULE_VERSIONS[config.grader](config)
    if ADDRESS.match(config.grader):
        return str(config.params.get("version", "0"))
    return resolve_verifier(config.grader).version
