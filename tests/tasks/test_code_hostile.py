"""Hostile answers: each is contained, graded as failed with the reason, and leaves nothing behind."""

import re
import shutil
from pathlib import Path

import pytest
from code_samples import ADD, GOOD, grade, left_over, sample
from hostile_answers import CONTAINED

from tasks.grading.config import GraderConfig
from tasks.grading.graders import open_grader
from tasks.grading.verdict import Verdict

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap isn't installed")


@pytest.fixture(scope="module")
def grader():
    opened = open_grader(GraderConfig(grader="python_code"))
    yield opened
    opened.close()
    assert left_over("inside.candidate", "inside.examiner", str(opened._launcher._folder)) == []


@pytest.mark.parametrize("name", CONTAINED)
def test_a_hostile_answer_is_contained_graded_as_failed_and_gone(name, grader):
    code, reason = CONTAINED[name]
    hostile, good = grade(grader, sample(code, timeout_s=2, **ADD), sample(GOOD, timeout_s=60, **ADD))
    assert isinstance(hostile, Verdict) and hostile.score == 0 and hostile.passed is False
    assert re.search(reason, hostile.detail["error"]), hostile.detail
    assert good == Verdict(1.0, True, {"tests": 1, "right": 1})
    assert left_over("inside.candidate") == []
    assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize(
    "name", ["exits in the call", "writes a verdict", "replaces the runner", "equal to everything"]
)
def test_pairs_of_arguments_and_result_are_no_weaker(name, grader):
    tests = [[[1, 2], 3], [[5, 6], 11]]
    code, _ = CONTAINED[name]
    hostile, good = grade(grader, *(sample(text, tests=tests, entry_point="add") for text in (code, GOOD)))
    assert hostile.score == 0 and hostile.passed is False
    assert good.score == 1 and good.passed
