"""The grader `python_code`: 1 where the code in a text passes the prompt's tests, run in a sandbox."""

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from storage.errors import InputError
from tasks.grading.sample import Sample
from tasks.grading.sandbox.bubblewrap import SWITCH, Launcher, SandboxError, check_sandbox
from tasks.grading.sandbox.examination import Examined, Examiners, examine
from tasks.grading.sandbox.examples import Tests, tests_of
from tasks.grading.sandbox.limits import Limits
from tasks.grading.sandbox.program import program_parts
from tasks.grading.verdict import Answer, Failure, Verdict, with_defaults

if TYPE_CHECKING:
    from tasks.grading.config import GraderConfig  # not imported: the table of verifiers is, by light workers

log = logging.getLogger(__name__)
NAME, VERSION = "python_code", "1"
LIMITS = Limits()
DEFAULTS: dict[str, Any] = {
    "tests": None,
    "entry_point": None,
    "prefix": "",
    "tolerance": 0.0,
    "partial": False,
    "timeout_s": LIMITS.timeout_s,
    "memory_mib": LIMITS.memory_mib,
    "threads": LIMITS.threads,
    "output_bytes": LIMITS.output_bytes,
    "value_bytes": LIMITS.value_bytes,
    SWITCH: False,
}
# From, to: what a prompt may ask for.
RANGES = {
    "timeout_s": (0.1, 600),
    "memory_mib": (64, 65_536),
    "threads": (1, 1024),
    "output_bytes": (0, 2**26),
    "value_bytes": (1024, 2**24),
    "tolerance": (0, 1),
}
WORKERS = len(os.sched_getaffinity(0))
# Shards run side by side, each with a grader: together they keep as many sandboxes busy as there are cores.
_cores = threading.BoundedSemaphore(WORKERS)


class CodeGrader:
    """Runs answers in sandboxes, as many at a time as there are cores.

    Raises `InputError` when opened where no sandbox can be made, unless the configuration's params have
    `run_untrusted_code_without_sandbox`; a prompt's own can't.
    """

    compares_group = False

    def __init__(self, config: "GraderConfig") -> None:
        sandboxed = config.params.get(SWITCH, False) is not True
        if sandboxed:
            check_sandbox()
        else:
            log.warning("grader %s: %s is set: code that a model wrote runs with your own rights", config.label, SWITCH)
        self._launcher = Launcher(sandboxed)
        self._examiners = Examiners(self._launcher)
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix=NAME)

    def version_of(self, sample: Sample) -> str:  # noqa: ARG002 one rule for all
        """`python_code/version`."""
        return f"{NAME}/{VERSION}"

    def grade_batch(self, samples: Sequence[Sample], progress: Callable[[int, int, str], None]) -> list[Answer]:
        """1 or 0 each (with `partial` the share of passed tests). Raises `InputError` for params that can't be."""
        read = [(sample, *self._read(sample.params)) for sample in samples]
        answers: list[Answer] = []
        for answer in self._pool.map(lambda work: self._grade(*work), read):
            answers.append(answer)
            progress(len(answers), len(samples), "rollouts")
        return answers

    def close(self) -> None:
        """End the pool and its processes."""
        self._pool.shutdown()
        self._examiners.close()
        self._launcher.close()

    def _read(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], Tests, Limits]:
        if params.get(SWITCH) and self._launcher.sandboxed:
            raise InputError(f"a prompt's verifier sets {SWITCH}; only params of the grader in the run file may")
        chosen = with_defaults(NAME, params, DEFAULTS)
        for name, (low, high) in RANGES.items():
            value = chosen[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise InputError(f"verifier {NAME}: expected params.{name} from {low} to {high}, found {value!r}")
        names = ("memory_mib", "threads", "output_bytes", "value_bytes")
        limits = Limits(float(chosen["timeout_s"]), *(int(chosen[name]) for name in names))
        return chosen, tests_of(chosen), limits

    def _grade(self, sample: Sample, params: Mapping[str, Any], tests: Tests, limits: Limits) -> Answer:
        parts = program_parts(sample.text, params["prefix"], params["entry_point"])
        try:
            with _cores:
                examined = examine(parts, tests, limits, self._launcher, self._examiners)
        except (SandboxError, OSError) as error:
            # The machine's fault, such as no process left to start: nothing is known of the answer.
            log.warning("rollout %s: %s", sample.rollout_id, error)
            return Failure(f"{type(error).__name__}: {error}")
        return _answer(examined, params["partial"])


def _answer(examined: Examined, partial: bool) -> Answer:
    if examined.unfit is not None:
        return Failure(examined.unfit)
    right, count = sum(examined.passed), len(examined.passed)
    detail: dict[str, Any] = {"tests": count, "right": right}
    if right < count:
        detail |= {"error": examined.error} | ({"printed": examined.printed} if examined.printed else {})
    return Verdict(right / count if partial else float(right == count), right == count, detail)


def python_code(text: str, answer: str | None, params: Mapping[str, Any]) -> Verdict:  # noqa: ARG001 there is no answer
    """One text by itself, in a grader opened for it; a stage grades by `CodeGrader`, many at a time.

    Params: tests (required), entry_point, prefix, tolerance (0), partial (false) and the limits of `Limits`. Raises
    `ValueError` when the tests can't be run.
    """
    from tasks.grading.config import GraderConfig

    grader = CodeGrader(GraderConfig(grader=NAME))
    try:
        sample = Sample("", "", "", (), text, 0, False, None, None, "", NAME, params)
        (graded,) = grader.grade_batch([sample], lambda *_: None)
    finally:
        grader.close()
    if isinstance(graded, Failure):
        raise ValueError(graded.error)
    return graded
