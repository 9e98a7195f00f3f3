"""A command that grades: a JSON line per sample in, a JSON line per sample out."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import IO

from storage.errors import InputError
from tasks.grading.config import GraderConfig
from tasks.grading.own.batches import BatchFailed, as_json, from_json, in_batches
from tasks.grading.pool import cores
from tasks.grading.sample import Sample
from tasks.grading.verdict import Answer
from tasks.grading.workers import Progress

OWN_PARAMS = ("run", "version")
MOST_OUTPUT_BYTES = 64 << 20
TAIL_CHARS = 500
LOOK_S = 0.02


class CommandGrader:
    """Runs the program `run` (a list: program and arguments; no shell) once for `batch_size` samples.

    It reads the samples as JSON lines from standard input and answers with a line each, in their order. Params: run,
    version; others are sent with each sample. A run that is late, ends with another exit code than 0, or gives more or
    fewer lines, has failed; its samples are tried one by one then. Raises `InputError` for a program that can't be run.
    """

    compares_group = False
    paid = True

    def __init__(self, config: GraderConfig) -> None:
        self._config = config
        self._command = command_of(config)
        self._sent_params = {name: value for name, value in config.params.items() if name not in OWN_PARAMS}
        self._stop = threading.Event()

    def version_of(self, sample: Sample) -> str:  # noqa: ARG002 it is the same for all
        """`program/version`, the version out of the params."""
        return f"{self._command[0]}/{self._config.params.get('version', 0)}"

    def grade_batch(self, samples: Sequence[Sample], progress: Progress) -> list[Answer]:
        """A run that fails leaves failures with the end of what it wrote to standard error."""
        return in_batches(
            samples,
            self._run,
            batch_size=self._config.batch_size,
            concurrency=min(self._config.concurrency, cores()),
            stop=self._stop,
            progress=progress,
        )

    def close(self) -> None:
        """End the runs that are under way."""
        self._stop.set()

    def _run(self, samples: Sequence[Sample]) -> list[Answer]:
        lines = [json.dumps(as_json(sample) | {"params": self._sent_params}) + "\n" for sample in samples]
        # Files, not pipes: no deadlock, whatever the command reads or writes first.
        with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:
            asked.write("".join(lines).encode())
            asked.seek(0)
            process = subprocess.Popen(self._command, stdin=asked, stdout=given, stderr=said, start_new_session=True)
            failed = self._ended(process, self._config.timeout_s * len(samples), (given, said))
            answered = _read(given).splitlines()
            if failed is None and len(answered) != len(samples):
                failed = f"it gave {len(answered)} lines to {len(samples)} samples"
            if failed is not None:
                raise BatchFailed(f"{self._config.label}: {failed}; standard error ends: {_read(said)[-TAIL_CHARS:]!r}")
        return [from_json(_parsed(line)) for line in answered]

    def _ended(self, process: subprocess.Popen[bytes], timeout_s: float, outputs: tuple[IO[bytes], ...]) -> str | None:
        """Wait for the process; end one that is late or writes without end, and what it started. Why it failed."""
        deadline, failed = time.monotonic() + timeout_s, None
        try:
            while process.poll() is None and failed is None:
                time.sleep(LOOK_S)
                if time.monotonic() > deadline:
                    failed = f"TimeoutError: no answer within {timeout_s:g} s"
                elif sum(os.fstat(each.fileno()).st_size for each in outputs) > MOST_OUTPUT_BYTES:
                    failed = f"it wrote more than {MOST_OUTPUT_BYTES >> 20} MiB"
                elif self._stop.is_set():
                    failed = "stopped"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        return failed or (f"exit code {code}" if code else None)


def command_of(config: GraderConfig) -> list[str]:
    """The program and its arguments. Raises `InputError` for a program that can't be run."""
    run = config.params.get("run")
    if not isinstance(run, list) or not run or not all(isinstance(part, str) for part in run):
        raise InputError(
            f"grader {config.label}: params.run is {run!r}, expected a list such as [./grade.sh, --strict]"
        )
    program = shutil.which(run[0])
    if program is None:
        raise InputError(f"grader {config.label}: {run[0]!r} is no program here; give its path, and make it executable")
    return run


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(MOST_OUTPUT_BYTES).decode(errors="replace")


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return line
