"""What a grader is, and the graders by the name that a run file gives."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from storage.errors import PosttrainError
from tasks.grading.config import GraderConfig
from tasks.grading.sample import Sample
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
    """Grades by verifiers, functions of text, answer and parameters."""

    compares_group = False

    def version_of(self, sample: Sample) -> str:
        """`name/version` of the sample's verifier."""
        return f"{sample.verifier}/{resolve_verifier(sample.verifier).version}"

    def grade_batch(self, samples: Sequence[Sample], progress: Progress) -> list[Answer]:
        """A verifier that fails on a sample leaves a failure; the others are graded."""
        answers = []
        for done, sample in enumerate(samples):
            answers.append(_verify(sample))
            if done % PROGRESS_ROWS == 0:
                progress(done, len(samples), "rollouts")
        return answers

    def close(self) -> None:
        """Nothing is held."""


def _verify(sample: Sample) -> Answer:
    verifier = resolve_verifier(sample.verifier)
    try:
        return verifier.function(sample.text, sample.answer, sample.params)
    except PosttrainError:
        raise
    except Exception as error:
        # The boundary at which somebody else's code fails: its row says so, the others are graded.
        log.debug("verifier %s failed on rollout %s", sample.verifier, sample.rollout_id, exc_info=True)
        return Failure(f"{type(error).__name__}: {error}")


# What `grader` names -> how it is opened. A name that isn't here is a verifier's.
GRADERS: dict[str, Callable[[GraderConfig], Grader]] = {}


def open_grader(config: GraderConfig) -> Grader:
    """The grader that a configuration names."""
    return GRADERS.get(config.grader, lambda _: VerifierGrader())(config)
