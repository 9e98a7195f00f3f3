"""Code sandboxes started per second against bare interpreters in the same run.

Both sides start `python -I -S` and wait for its end, as many at a time as there are cores: a sandbox from its start
over a loaded answer to its end, a bare interpreter with the same program on its command line. Then whole grades per
second, tests in their own process among them. `python tests/benchmarks/sandbox_speed.py` measures this part of
`make bench` alone.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from update_speed import Line, show

from storage.errors import InputError

STARTS, REPETITIONS, RATIO_LIMIT = 60, 3, 0.4
ANSWER = "def add(a, b):\n    return a + b\n"
TESTS = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(5, 6) == 11\n"


def rate(work: Callable[[], None]) -> float:
    """Calls per second, as many at a time as there are cores."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        started = time.perf_counter()
        for _ in pool.map(lambda _: work(), range(STARTS)):
            pass
        return STARTS / (time.perf_counter() - started)


def start_rates() -> tuple[float, float]:
    """Sandboxes and bare interpreters per second: the best of turns taken one after the other."""
    from tasks.grading.sandbox.bubblewrap import Launcher, check_sandbox
    from tasks.grading.sandbox.limits import Limits

    check_sandbox()
    interpreter = str(Path(sys._base_executable).resolve())
    launcher = Launcher(sandboxed=True)

    def sandbox() -> None:
        process = launcher.candidate(Limits())
        try:
            process.ask(("load", [ANSWER], ["add"]), time.monotonic() + 60)
        finally:
            process.close()

    def bare() -> None:
        subprocess.run([interpreter, "-I", "-S", "-c", ANSWER], env={}, check=True)

    try:
        turns = [(rate(sandbox), rate(bare)) for _ in range(REPETITIONS)]
    finally:
        launcher.close()
    return max(turn[0] for turn in turns), max(turn[1] for turn in turns)


def grade_rate() -> float:
    """Answers graded per second by tests that are source."""
    from tasks.grading.config import GraderConfig
    from tasks.grading.sample import Sample
    from tasks.grading.sandbox.grader import NAME, CodeGrader

    params = {"tests": TESTS, "entry_point": "add"}
    samples = [Sample("r", "p", "x", (), ANSWER, 1, False, None, None, "", NAME, params)] * STARTS
    grader = CodeGrader(GraderConfig(grader=NAME))
    try:
        grader.grade_batch(samples[:4], lambda *_: None)
        started = time.perf_counter()
        answers = grader.grade_batch(samples, lambda *_: None)
        seconds = time.perf_counter() - started
    finally:
        grader.close()
    if not all(getattr(answer, "passed", False) for answer in answers):
        sys.exit("the bench's own right answer didn't pass")
    return STARTS / seconds


def measure_sandbox() -> list[Line]:
    """A line for starts and one for grades; none where no sandbox can be made."""
    try:
        sandboxes, bare = start_rates()
    except InputError as error:
        print(f"no sandbox here, so its speed isn't measured: {error}")
        return []
    graded = grade_rate()
    return [
        Line(
            "sandbox starts / bare python -I -S, per s",
            f"{sandboxes:.0f} / {bare:.0f}",
            sandboxes / bare,
            f">= {RATIO_LIMIT}",
            sandboxes / bare >= RATIO_LIMIT,
        ),
        Line("code graded / sandbox starts, per s", f"{graded:.0f} / {sandboxes:.0f}", graded / sandboxes, "", None),
    ]


if __name__ == "__main__":
    sys.exit(0 if all([show(line) for line in measure_sandbox()]) else 1)
