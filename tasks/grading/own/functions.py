"""Functions and classes of one's own, in worker processes: what is stuck or ends its process fails its own row."""

import functools
from collections.abc import Sequence

from tasks.grading.config import GraderConfig
from tasks.grading.own.calls import Call
from tasks.grading.own.signatures import VALUES, Form, batch_form, form_of, prompt_of, version_at
from tasks.grading.pool import WorkerPool
from tasks.grading.sample import Sample
from tasks.grading.verdict import Answer
from tasks.grading.verifiers.registry import VERIFIERS, resolve_verifier
from tasks.grading.workers import Job, Progress, grade_in_workers

ROWS_OF_ASYNC = 4096


def call_of(sample: Sample) -> Call:
    """How a worker calls the sample's verifier, a function of one's own among them."""
    known = VERIFIERS.get(sample.verifier)
    if known is not None:
        return sample.verifier, (sample,) if known.whole_sample else (sample.text, sample.answer, sample.params), {}
    return sample.verifier, *_form(sample.verifier).arguments(sample)


@functools.lru_cache(maxsize=256)
def _form(path: str) -> Form:
    return form_of(path, resolve_verifier(path).function)


class AsyncGrader:
    """An `async def` of one's own: `concurrency` rollouts at once, in the event loop of a worker of its own."""

    compares_group = False

    def __init__(self, config: GraderConfig) -> None:
        self._config = config
        self._version = version_at(config.grader)
        self._pool = WorkerPool(1)

    def version_of(self, sample: Sample) -> str:  # noqa: ARG002 it is the same for all
        """`path/version` of the function."""
        return f"{self._config.grader}/{self._version}"

    def grade_batch(self, samples: Sequence[Sample], progress: Progress) -> list[Answer]:
        """What raises or takes too long leaves a failure."""
        config = self._config
        arguments = (config.grader, config.concurrency, config.timeout_s)
        job = Job("tasks.grading.own.calls:concurrent", arguments, config.timeout_s, "concurrent", ROWS_OF_ASYNC)
        return grade_in_workers([call_of(sample) for sample in samples], job, self._pool, progress)

    def close(self) -> None:
        """End the worker."""
        self._pool.close()


class ClassGrader:
    """A class with `grade_batch`, made once in a worker of its own. A batch that fails is tried one by one."""

    compares_group = False

    def __init__(self, config: GraderConfig, grader: type) -> None:
        self._config = config
        self._fills = batch_form(config.grader, grader, config.params)
        self._version = version_at(config.grader)
        self._pool = WorkerPool(1)

    def version_of(self, sample: Sample) -> str:  # noqa: ARG002 it is the same for all
        """`path/version` of the class."""
        return f"{self._config.grader}/{self._version}"

    def grade_batch(self, samples: Sequence[Sample], progress: Progress) -> list[Answer]:
        """`batch_size` samples a call; a call may take the limit of all its rollouts together."""
        config = self._config
        rows = [
            {"prompts": prompt_of(sample), "completions": sample.text}
            | {name: VALUES[value](sample) for name, value in self._fills.items()}
            for sample in samples
        ]
        arguments = (config.grader, dict(config.params))
        job = Job("tasks.grading.own.calls:batches", arguments, config.timeout_s, "batches", config.batch_size)
        return grade_in_workers(rows, job, self._pool, progress)

    def close(self) -> None:
        """End the worker."""
        self._pool.close()
