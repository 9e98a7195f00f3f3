"""What a grader is, and the graders by the name that a run file gives."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from storage.errors import PosttrainError
from tasks.grading.config import GraderConfig
from tasks.grading.majority import MajorityGrader
from tasks.grading.process import ProcessGrader
from tasks.grading.sample import Sample
from tasks.grading.sandbox import grader as python_code
from tasks.grading.verdict import Answer, Failure
from tasks.grading.verifiers.registry import resolve_verifier

log = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]
PROGRESS_ROWS = 1000


class Grader(Protocol):
    """Says how good samples are: one answer a sample, in their order.

    An answer depends on its own sample alone, unless the grader compares the samples of a prompt
    (`compares_group`): those come together then. What the grader can't grade is a `Failure`; `InputError` is for what
    is wrong with the configuration. Opened once for a slice of rollouts, closed after it.
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
    """Grades by verifiers, functions of text, answer and parameters or of the whole sample.

    A verifier that is a grader too (`GRADERS`) gets its samples at once.
    """

    compares_group = False

    def __init__(self, config: GraderConfig) -> None:
        self._config = config
        self._opened: dict[str, Grader] = {}

    def version_of(self, sample: Sample) -> str:
        """`name/version` of the sample's verifier."""
        return f"{sample.verifier}/{resolve_verifier(sample.verifier).version}"

    def grade_batch(self, samples: Sequence[Sample], progress: Progress) -> list[Answer]:
        """A verifier that fails on a sample leaves a failure; the others are graded."""
        answers: dict[int, Answer] = {}
        for name in sorted({sample.verifier for sample in samples} & set(GRADERS)):
            places = [place for place, sample in enumerate(samples) if sample.verifier == name]
            chosen = [samples[place] for place in places]
            answers |= zip(places, self._grader(name).grade_batch(chosen, progress), strict=True)
        for place, sample in enumerate(samples):
            if place not in answers:
                answers[place] = _verify(sample)
            if place % PROGRESS_ROWS == 0:
                progress(place, len(samples), "rollouts")
        return [answers[place] for place in range(len(samples))]

    def close(self) -> None:
        """Close the graders that verifiers named."""
        for grader in self._opened.values():
            grader.close()
        self._opened.clear()

    def _grader(self, name: str) -> Grader:
        if name not in self._opened:
            self._opened[name] = GRADERS[name](self._config)
        return self._opened[name]


def _verify(sample: Sample) -> Answer:
    verifier = resolve_verifier(sample.verifier)
    try:
        return verifier.verify(sample)
    except PosttrainError:
        raise
    except Exception as error:
        # The boundary at which somebody else's code fails: its row says so, the others are graded.
        log.debug("verifier %s failed on rollout %s", sample.verifier, sample.rollout_id, exc_info=True)
        return Failure(f"{type(error).__name__}: {error}")


# What `grader` names -> how it is opened. A name that isn't here is a verifier's.
GRADERS: dict[str, Callable[[GraderConfig], Grader]] = {
    python_code.NAME: python_code.CodeGrader,
    "majority": MajorityGrader,
    "process": ProcessGrader,
}
# The same names -> the version of the rule, which is part of the fingerprint.
RULE_VERSIONS: dict[str, Callable[[GraderConfig], str]] = {
    "majority": lambda config: MajorityGrader(config).rule_version,
    "process": lambda config: ProcessGrader(config).rule_version,
}


def rule_version(config: GraderConfig) -> str:
    """The version of a grader's or verifier's rule. Raises `InputError` for a name or params that there aren't."""
    if config.grader in RULE_VERSIONS:
        return RULE_VERSIONS[config.grader](config)
    return resolve_verifier(config.grader).version


def open_grader(config: GraderConfig) -> Grader:
    """The grader that a configuration names."""
    return GRADERS.get(config.grader, VerifierGrader)(config)
