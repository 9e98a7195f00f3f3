"""Verifiers besides haiku, by what they accept."""

import pytest

from storage.errors import InputError
from tasks.grading.verifiers.registry import resolve_verifier


def verify(name: str, text: str, answer: str | None = None, **params):
    return resolve_verifier(name).function(text, answer, params)


GSM8K = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nAltogether 48+24 = 72.\n#### 72"


@pytest.mark.parametrize(
    ("text", "answer", "passed"),
    [
        ("She sold 72 clips.", GSM8K, True),
        ("48 + 24 = 72\n#### 72.0", GSM8K, True),
        ("#### 71, or was it 72", GSM8K, False),
        (r"so \boxed{72} of 100", GSM8K, True),
        ("72 in April and 10 in May", GSM8K, False),
        ("no idea", GSM8K, False),
        ("The total is $1,234.50.", "#### 1234.5", True),
        ("it drops to -3", "-3", True),
    ],
)
def test_number(text, answer, passed):
    verdict = verify("number", text, answer)
    assert verdict.passed is passed
    assert verdict.score == float(passed)


def test_number_with_a_tolerance():
    assert verify("number", "about 101", "100", tolerance=0.01).passed
    assert not verify("number", "about 102", "100", tolerance=0.01).passed


def test_exact_match():
    assert verify("exact_match", "  The  Seine\n", "the seine").passed
    assert not verify("exact_match", "The Seine", "the seine", ignore_case=False).passed
    assert verify("exact_match", "Thinking...\nParis", "Paris", last_line=True).passed
    assert not verify("exact_match", "", "Paris", last_line=True).passed


def test_regex():
    assert verify("regex", "<answer>12</answer>", "12", pattern=r"<answer>(.*?)</answer>").passed
    assert not verify("regex", "<answer>13</answer>", "12", pattern=r"<answer>(.*?)</answer>").passed
    assert verify("regex", "YES", None, pattern="yes", ignore_case=True).passed
    with pytest.raises(InputError, match=r"params\.pattern"):
        verify("regex", "x", None, pattern="(")
    with pytest.raises(InputError, match=r"params\.pattern"):
        verify("regex", "x", None)


def test_length_gives_partial_credit():
    assert verify("length", "one two three", min_words=2, max_words=3).passed
    assert verify("length", "one", min_words=4, max_words=8).score == 0.25
    assert verify("length", "w " * 20, max_words=10).score == 0.5
    with pytest.raises(InputError, match="min_words <= max_words"):
        verify("length", "one", min_words=5, max_words=3)


def test_a_missing_answer_fails_the_row_not_the_stage():
    with pytest.raises(ValueError, match="the prompt has none"):
        verify("number", "72", None)


def test_names_and_dotted_paths():
    assert resolve_verifier("tasks.grading.verifiers.registry:number").function is resolve_verifier("number").function
    with pytest.raises(InputError, match="no verifier 'haikku'; there are haiku"):
        resolve_verifier("haikku")
    with pytest.raises(InputError, match="can't be imported"):
        resolve_verifier("nowhere:verify")
