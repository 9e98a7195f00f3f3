"""Verifiers besides haiku, by what they accept."""

import sys
from types import ModuleType

import pytest
from verifying import verify

from storage.errors import InputError
from tasks.grading.verdict import Verdict
from tasks.grading.verifiers.registry import resolve_verifier

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
        ("3 " + "and so on " * 60, "3", True),
        ("1,234,567 " + "and so on " * 60 + "1,234,568", "1234568", True),
        ("7 of " + "x" * 400 + "1,5", "5", True),
        ("#### 12 and #### 13", "13", True),
        (".5", "0.50", True),
        ("1" * 40, "1" * 39 + "2", False),
    ],
)
def test_number(text, answer, passed):
    verdict = verify("number", text, answer)
    assert verdict.passed is passed
    assert verdict.score == float(passed)


def test_number_with_a_tolerance():
    assert verify("number", "about 101", "100", tolerance=0.01).passed
    assert not verify("number", "about 102", "100", tolerance=0.01).passed


@pytest.mark.parametrize(
    ("text", "answer", "params", "passed"),
    [
        ("  The  Seine\n", "the seine", {}, True),
        ("The Seine", "the seine", {"ignore_case": False}, False),
        ("Thinking...\nParis", "Paris", {"last_line": True}, True),
        ("Thinking...\nParis", "Paris", {}, False),
        ("", "Paris", {"last_line": True}, False),
        ("", "", {}, True),
        ("STRASSE", "straße", {}, True),
        ("The Seine river", "the seine", {}, False),
        ("The", "the seine", {}, False),
        ("Paris.", "Paris", {}, False),
        ("colour", '["color", "colour"]', {"several": True}, True),
        ("hue", '["color", "colour"]', {"several": True}, False),
        ('["color", "colour"]', '["color", "colour"]', {}, True),
    ],
)
def test_exact_match(text, answer, params, passed):
    assert verify("exact_match", text, answer, **params).passed is passed


@pytest.mark.parametrize(
    ("text", "answer", "params", "passed"),
    [
        ("The Eiffel Tower!", "eiffel tower", {}, True),
        ("an  apple, a pear & the plum", "Apple pear & plum.", {}, True),
        ("ﬁne", "fine", {}, True),
        ("４２", "42", {"nfkc": False}, False),
        ("４２", "42", {}, True),
        ("“Hamlet”", "Hamlet", {}, True),
        ("“Hamlet”", "Hamlet", {"ignore_punctuation": False}, False),
        ("the who", "who", {"ignore_articles": False}, False),
        ("Theodore", "odore", {}, False),
        ("PARIS", "Paris", {"ignore_case": False}, False),
        ("So:\nThe answer is Paris.", "the answer is paris", {"last_line": True}, True),
        ("U.S.A.", "usa", {}, True),
        ("x = 2", "X 2", {}, True),
        ("rome", '["Paris", "The Rome"]', {"several": True}, True),
        ("", "Paris", {}, False),
        ("x", "", {}, False),
    ],
)
def test_normalised_match(text, answer, params, passed):
    assert verify("normalised_match", text, answer, **params).passed is passed


@pytest.mark.parametrize("answer", ["Paris", "[]", "[1]", '{"a": 1}'])
def test_several_answers_have_to_be_a_list_of_texts(answer):
    for name in ("exact_match", "normalised_match"):
        with pytest.raises(ValueError, match="no JSON list"):
            verify(name, "Paris", answer, several=True)


@pytest.mark.parametrize(
    ("text", "answer", "params", "passed"),
    [
        ("<answer>12</answer>", "12", {"pattern": r"<answer>(.*?)</answer>"}, True),
        ("<answer> 12 </answer>", "12", {"pattern": r"<answer>(.*?)</answer>"}, True),
        ("<answer>13</answer>", "12", {"pattern": r"<answer>(.*?)</answer>"}, False),
        ("12", "12", {"pattern": r"<answer>(.*?)</answer>"}, False),
        ("YES", None, {"pattern": "yes", "ignore_case": True}, True),
        ("YES", None, {"pattern": "yes"}, False),
        ("yes", "no", {"pattern": "yes"}, True),
        ("ab", "", {"pattern": "a(x)?b"}, True),
        ("", None, {"pattern": "^$"}, True),
        ("a\nb", None, {"pattern": "^b$"}, False),
        ("a\nb", None, {"pattern": "(?m)^b$"}, True),
    ],
)
def test_regex(text, answer, params, passed):
    assert verify("regex", text, answer, **params).passed is passed


def test_a_pattern_that_backtracks_fails_its_row_in_time():
    with pytest.raises(TimeoutError):
        verify("regex", "a" * 60 + "!", None, pattern=r"^(a|a|aa)+$", timeout_s=0.2)


@pytest.mark.parametrize(
    ("text", "tokens", "params", "score"),
    [
        ("one two three", 3, {"min_words": 2, "max_words": 3}, 1),
        ("one", 1, {"min_words": 4, "max_words": 8}, 0.25),
        ("w " * 20, 20, {"max_words": 10}, 0.5),
        ("", 0, {"max_words": 10}, 0),
        ("", 0, {"min_words": 0, "max_words": 10}, 1),
        ("any words", 30, {"max_tokens": 20}, 2 / 3),
        ("any words", 30, {"min_tokens": 30}, 1),
        ("any words", 15, {"min_tokens": 30}, 0.5),
        ("äöü", 9, {"max_characters": 3}, 1),
        ("äöü.", 9, {"max_characters": 3}, 0.75),
        ("one two", 40, {"max_words": 4, "max_tokens": 20, "max_characters": 100}, 0.5),
    ],
)
def test_length_gives_partial_credit(text, tokens, params, score):
    verdict = verify("length", text, tokens=tokens, **params)
    assert verdict.score == pytest.approx(score)
    assert verdict.passed is (score == 1)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("exact_match", {"ignore_case": "no"}, "params.ignore_case is 'no'; expected true or false"),
        ("exact_match", {"lastline": True}, "unknown params"),
        ("normalised_match", {"articles": True}, "unknown params"),
        ("number", {"tolerance": -1}, "params.tolerance is -1"),
        ("number", {"tolerance": "1"}, "params.tolerance"),
        ("regex", {"pattern": "("}, r"params\.pattern"),
        ("regex", {}, r"params\.pattern"),
        ("regex", {"pattern": "x", "timeout_s": 0}, "params.timeout_s is 0; expected seconds"),
        ("length", {"min_words": 5, "max_words": 3}, "min_words <= max_words"),
        ("length", {"max_tokens": 0.5}, "min_tokens <= max_tokens"),
        ("length", {}, "no bound is given"),
    ],
)
def test_wrong_params_are_refused(name, params, message):
    with pytest.raises(InputError, match=message):
        verify(name, "x", "1", **params)


def test_a_missing_answer_fails_the_row_not_the_stage():
    with pytest.raises(ValueError, match="the prompt has none"):
        verify("number", "72", None)


def test_ones_own_verifier_may_take_the_whole_sample(monkeypatch):
    module = ModuleType("own_verifiers")

    def short(sample):
        return Verdict(float(sample.tokens < 5))

    short.whole_sample, short.version = True, "4"
    module.short = short
    monkeypatch.setitem(sys.modules, "own_verifiers", module)
    assert verify("own_verifiers:short", "any", tokens=4).score == 1
    assert verify("own_verifiers:short", "any", tokens=5).score == 0
    assert resolve_verifier("own_verifiers:short").version == "4"


def test_names_and_dotted_paths():
    assert resolve_verifier("tasks.grading.verifiers.numbers:number").function is resolve_verifier("number").function
    with pytest.raises(InputError, match="no verifier 'haikku'; there are haiku"):
        resolve_verifier("haikku")
    with pytest.raises(InputError, match="can't be imported"):
        resolve_verifier("nowhere:verify")
