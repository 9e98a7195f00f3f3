"""Samples for the code grader, and what is left of its processes."""

import time
from pathlib import Path
from typing import Any

from tasks.grading.sample import Sample

ADD_TESTS = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(5, 6) == 11\n"
ADD = {"tests": ADD_TESTS, "entry_point": "add"}
GOOD = "def add(a, b):\n    return a + b\n"


def sample(text: str, verifier: str = "python_code", **params: Any) -> Sample:
    return Sample("r", "p", "policy", (), text, 1, False, None, None, "code", verifier, params)


def grade(grader: Any, *samples: Sample) -> list[Any]:
    return grader.grade_batch(samples, lambda done, total, label: None)


def left_over(*marks: str, patience_s: float = 10.0) -> list[str]:
    """Command lines with one of the marks that are still there; a process that ends has a moment for it."""
    until = time.monotonic() + patience_s
    while (found := _running(marks)) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def _running(marks: tuple[str, ...]) -> list[str]:
    lines = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                lines.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:  # it ended meanwhile
                continue
    return [line for line in lines if any(mark in line for mark in marks)]
