"""Verifiers in worker processes against the same verifiers one after the other in one process, same rows, same run.

Both give the same answers. The line says what bounds it: rows cross to a worker and their answers come back, so the
cheaper the verifier, the less a second core can add.
"""

import statistics
import time
from collections.abc import Callable

import psutil

from tasks.grading.lanes import guarded
from tasks.grading.own.calls import Call, called
from tasks.grading.pool import cores, shared_pool
from tasks.grading.verdict import Answer
from tasks.grading.workers import Job, grade_in_workers

ROWS, RUNS = 40_000, 3
TARGET_PER_S = 50_000
JOB = Job("tasks.grading.own.calls:verifiers")
POND = "An old silent pond\nA frog jumps into the pond\nSplash! Silence again."
REASONED = "There are {0} of them, and twice that makes {1}. " * 8 + "#### {1}"
SETS: dict[str, Callable[[int], Call]] = {
    "exact_match": lambda row: ("exact_match", (f"the answer is {row}", f"The answer is {row}", {}), {}),
    "number": lambda row: ("number", (REASONED.format(row, 2 * row), str(2 * row), {}), {}),
    "regex": lambda row: ("regex", (REASONED.format(row, row), str(row), {"pattern": r"#### (\d+)"}), {}),
    "haiku": lambda row: ("haiku", (f"{POND} {row}", None, {}), {}),
}


def seconds(grade: Callable[[], list[Answer]]) -> tuple[float, list[Answer]]:
    """Median seconds of some runs, and the answers."""
    taken = []
    for _ in range(RUNS):
        started = time.perf_counter()
        answers = grade()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken), answers


def cpu_times() -> tuple[float, float]:
    """CPU seconds so far of this process, and of its workers: what idle cores would need, however busy these are."""
    spent = [psutil.Process(worker.pid).cpu_times() for worker in shared_pool()._all]
    return time.process_time(), sum(each.user + each.system for each in spent)


def measure() -> list[str]:
    """A line for each verifier, after one for the start of the workers."""
    started = time.perf_counter()
    grade_in_workers([SETS["exact_match"](0)] * 64, JOB, shared_pool(), lambda *_: None)
    lines = [f"first 64 rows, workers started for them     {time.perf_counter() - started:.2f} s"]
    started = time.perf_counter()
    grade_in_workers([SETS["exact_match"](0)] * 64, JOB, shared_pool(), lambda *_: None)
    lines.append(f"next 64 rows                                {time.perf_counter() - started:.4f} s")
    for name, row in SETS.items():
        rows = [row(index) for index in range(ROWS)]
        before = cpu_times()
        pool_s, pooled = seconds(lambda rows=rows: grade_in_workers(rows, JOB, shared_pool(), lambda *_: None))
        own_us, worker_us = ((now - then) / RUNS / ROWS * 1e6 for now, then in zip(cpu_times(), before, strict=True))
        alone_s, alone = seconds(lambda rows=rows: [guarded(called, each) for each in rows])
        if alone != pooled:
            raise AssertionError(f"{name}: workers grade otherwise than one process")
        ratio = f"{ROWS / pool_s:,.0f} / {ROWS / alone_s:,.0f}"
        lines.append(
            f"{name:<12} {cores()} workers / 1 process, rollouts/s  {ratio:<18} ratio {alone_s / pool_s:.2f}   "
            f"CPU a row: {own_us:.1f} us here, {worker_us:.1f} us in workers"
        )
    return lines


if __name__ == "__main__":
    for line in measure():
        print(line)
    print(f"target: {TARGET_PER_S:,} rollouts/s")
