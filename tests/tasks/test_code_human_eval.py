"""HumanEval: every canonical solution passes and no mutant does that a plain run of the tests finds wrong."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from code_samples import grade, sample
from mutants import mutants

from tasks.grading.config import GraderConfig
from tasks.grading.graders import open_grader
from tasks.grading.verdict import Verdict

SHARED = Path(os.environ.get("POSTTRAIN_SHARED", Path(__file__).parents[3] / "shared"))
PROBLEMS = SHARED / "data" / "human-eval" / "problems.jsonl.gz"
SAMPLE = 40
PLAIN_TIMEOUT_S = 3

pytestmark = [
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap isn't installed"),
    pytest.mark.skipif(not PROBLEMS.is_file(), reason=f"no HumanEval at {PROBLEMS}; POSTTRAIN_SHARED names its folder"),
]


def problems(part: slice) -> list[dict]:
    with gzip.open(PROBLEMS, "rt") as lines:
        return [json.loads(line) for line in lines][part]


def code_sample(problem: dict, text: str, **params):
    return sample(text, tests=problem["test"], prefix=problem["prompt"], entry_point=problem["entry_point"], **params)


def fails_plainly(problem: dict, program: str) -> bool:
    """Whether the tests, run in one bare interpreter with the program, fail or don't end."""
    source = f"{problem['prompt']}\n{program}\n{problem['test']}\ncheck({problem['entry_point']})\n"
    command = [sys.executable, "-I", "-S", "-c", source]
    try:
        return subprocess.run(command, capture_output=True, timeout=PLAIN_TIMEOUT_S, check=False).returncode != 0
    except subprocess.TimeoutExpired:
        return True


@pytest.fixture
def grader():
    opened = open_grader(GraderConfig())
    yield opened
    opened.close()


def right_and_wrong(grader, chosen: list[dict], faults: int) -> Counter:
    """The canonical solutions as completions and fenced whole, and the mutants. How many of each fault were graded."""
    completions = [code_sample(problem, problem["canonical_solution"], timeout_s=60) for problem in chosen]
    programs = [problem["prompt"] + problem["canonical_solution"] for problem in chosen]
    whole = [
        code_sample(problem, f"Here it is:\n```python\n{program}```\nIt works.", timeout_s=60)
        for problem, program in zip(chosen, programs, strict=True)
    ]
    answers = grade(grader, *completions, *whole)
    wrong = [answer for answer in answers if answer != Verdict(1.0, True, {"tests": 1, "right": 1})]
    assert wrong == []
    counted: Counter = Counter()
    graded, names = [], []
    for problem, program in zip(chosen, programs, strict=True):
        for kind, mutant in mutants(program, problem["entry_point"], faults):
            if fails_plainly(problem, mutant):
                counted[kind] += 1
                names.append((problem["task_id"], kind))
                graded.append(code_sample(problem, mutant, timeout_s=PLAIN_TIMEOUT_S))
    verdicts = grade(grader, *graded)
    assert [name for name, verdict in zip(names, verdicts, strict=True) if verdict.passed is not False] == []
    assert {verdict.score for verdict in verdicts} == {0}
    return counted


def test_a_sample_of_human_eval(grader):
    counted = right_and_wrong(grader, problems(slice(SAMPLE)), faults=2)
    print(f"mutants that the plain tests find wrong: {counted.total()}: {dict(counted)}")
    assert counted.total() >= SAMPLE and len(counted) >= 4


@pytest.mark.slow
def test_all_of_human_eval(grader):
    chosen = problems(slice(None))
    counted = right_and_wrong(grader, chosen, faults=5)
    print(f"{len(chosen)} problems; mutants that the plain tests find wrong: {counted.total()}: {dict(counted)}")
    assert counted.total() >= 2 * len(chosen)
