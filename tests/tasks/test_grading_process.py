"""Rewards by step: how texts fall into steps, arithmetic step by step, and the outcomes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import InputError
from tasks.grading.config import GraderConfig
from tasks.grading.graders import open_grader, version_of_grader
from tasks.grading.sample import Sample
from tasks.grading.verdict import Failure
from tasks.grading.verifiers.registry import resolve_verifier
from tasks.grading.verifiers.steps import SPLITTERS, holds, splitter

SOLUTION = "Tom has 3 + 4 = 7 apples.\nEach costs $2.50, so 7 * $2.50 = $17.50.\nHe pays 17.5 - 20 = 2.5."


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("3 + 4 = 7", True),
        ("3 + 4 = 8", False),
        ("2 + 3 * 4 = 14", True),
        ("2 + 3 * 4 = 20", False),
        ("10 / 4 = 2.5", True),
        ("10 / 3 = 3.33", True),
        ("10 / 3 = 3.34", False),
        ("10 / 3 = 3", False),
        ("1,200 - 200 = 1,000", True),
        ("5 - -3 = 8", True),
        ("-5 + 3 = -2", True),
        ("6 x 7 = 42 and 6 × 7 = 43", False),
        ("48/2=24 clips, <<48/2=24>>", True),
        ("20% * 50 = 10", True),
        ("1/4 = 25%", True),
        ("1 / 0 = 0", False),
        ("$7 * 2.50 = $17.50", True),
        ("- 5 + 3 = 8", True),
        ("nothing is claimed", None),
        ("x = 5", None),
        # Only a part of a longer calculation: nothing is said of it.
        ("(2 + 3) * 4 - 1 = 19", None),
        ("3 + 4 = 7 + 1", None),
        ("3 + 4 = 18 + 1", None),
    ],
)
def test_arithmetic_of_a_step(step, expected):
    assert holds(step) is expected


@given(a=st.integers(-99, 999), b=st.integers(0, 999), operator=st.sampled_from("+-*"), off=st.integers(-3, 3))
def test_an_equality_holds_only_for_its_result(a, b, operator, off):
    result = {"+": a + b, "-": a - b, "*": a * b}[operator]
    assert holds(f"So {a} {operator} {b} = {result + off}.") is (off == 0)


@pytest.mark.parametrize(("outcome", "expected"), [("min", 0.0), ("product", 0.0), ("last", 0.0), ("mean", 2 / 3)])
def test_the_verifier_steps_scores_each_line(outcome, expected):
    found = resolve_verifier("steps").function(SOLUTION, None, {"outcome": outcome})
    assert found.score == pytest.approx(expected)
    assert found.detail == {"steps": [1.0, 1.0, 0.0]}


def test_splitters():
    text = "Plan first.\n1. add\nmore of it\n2) take away\n\nStep 3: done"
    assert SPLITTERS["numbered"](text) == ["Plan first.", "1. add\nmore of it", "2) take away", "Step 3: done"]
    assert SPLITTERS["blank_lines"](text) == [text.partition("\n\n")[0], "Step 3: done"]
    assert len(SPLITTERS["lines"](text)) == 5
    assert splitter("process", {"split": "regex", "pattern": r"\s*;\s*"})("a; b ;c") == ["a", "b", "c"]
    with pytest.raises(InputError, match="has groups"):
        splitter("process", {"split": "regex", "pattern": "(;)"})
    with pytest.raises(InputError, match=r"params.split is 'word', expected one of blank_lines"):
        splitter("process", {"split": "word"})


def graded(*texts: str, timeout_s: float = 10.0, **params) -> list:
    grader = open_grader(GraderConfig(grader="process", params=params, timeout_s=timeout_s))
    messages = [{"role": "user", "content": "hi"}]
    given_samples = [
        Sample(f"r{i}", "p", "policy", messages, text, 3, False, None, None, "", "process", {})
        for i, text in enumerate(texts)
    ]
    return grader.grade_batch(given_samples, lambda done, total, label: None)


@pytest.mark.parametrize(("outcome", "expected"), [("min", 0.5), ("product", 0.375), ("last", 0.75), ("mean", 0.625)])
def test_a_scorer_of_ones_own_and_its_outcomes(outcome, expected):
    [found] = graded("first\n\nsecond", scorer="own_scorers:rising", outcome=outcome, pass_step=0.6)
    assert (found.score, found.passed, found.detail) == (expected, False, {"steps": [0.5, 0.75]})
    config = GraderConfig(grader="process", params={"scorer": "own_scorers:rising"})
    assert version_of_grader(config) == "1/own_scorers:rising/7"


def test_what_a_scorer_cannot_score_is_a_failure_and_the_others_are_graded():
    found = graded("raise", "short\n\none", "", "fine", scorer="own_scorers:rising")
    assert [isinstance(answer, Failure) for answer in found] == [True, True, True, False]
    assert "KeyError: 'no model'" in found[0].error
    assert found[1].error == "the scorer gave 1 scores to 2 steps"
    [nan] = graded("x", scorer="own_scorers:nan")
    assert "expected finite numbers" in nan.error
    json.dumps([answer.detail for answer in found])


def test_a_scorer_that_is_stuck_or_ends_its_process_fails_its_own_row():
    found = graded("fine", "loop", "exit", "fine", scorer="own_scorers:hostile", timeout_s=1.0)
    assert [isinstance(answer, Failure) for answer in found] == [False, True, True, False]
    assert "no answer within 1 s" in found[1].error
    assert "ended its worker process (exit code 3)" in found[2].error


def test_a_pattern_that_never_ends_fails_its_row():
    endless = {"split": "regex", "pattern": "(?:a|aa)+$"}
    found = graded("a" * 60 + "b", "fine", scorer="arithmetic", **endless)
    assert isinstance(found[0], Failure)
    assert "TimeoutError" in found[0].error
    assert "no steps" not in found[0].error


def test_a_scorer_must_be_named():
    for params, message in [({}, "params.scorer is None"), ({"scorer": "nowhere:f"}, "can't be imported")]:
        with pytest.raises(InputError, match=message):
            open_grader(GraderConfig(grader="process", params=params))
    with pytest.raises(InputError, match=r"params.outcome is 'max', expected one of min, product, last, mean"):
        open_grader(GraderConfig(grader="process", params={"scorer": "arithmetic", "outcome": "max"}))
