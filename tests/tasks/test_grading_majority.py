"""The vote of a prompt's samples, and the answers that are compared."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from storage.errors import InputError
from tasks.grading.answers import boxed, final, number
from tasks.grading.config import GraderConfig, GradingConfig
from tasks.grading.graders import open_grader, version_of_grader
from tasks.grading.sample import Sample
from tasks.grading.verdict import Failure


def samples(*texts: str, prompt: str = "p", truncated: tuple[int, ...] = ()) -> list[Sample]:
    return [
        Sample(f"{prompt}{i}", prompt, "policy", [], text, 3, i in truncated, None, None, "", "majority", {})
        for i, text in enumerate(texts)
    ]


def vote(given_samples: list[Sample], **params) -> list:
    grader = open_grader(GraderConfig(grader="majority", from_iteration=1, params=params))
    assert grader.compares_group
    return grader.grade_batch(given_samples, lambda done, total, label: None)


@pytest.mark.parametrize(
    ("texts", "params", "scores", "share"),
    [
        (("It is 12.", "so 12.0", "13"), {}, [1, 1, 0], 2 / 3),
        ((r"\boxed{\frac{1}{2}}", r"thus \boxed{ \frac{1}{2} } of 3", "0.5"), {}, [1, 1, 0], 2 / 3),
        (("7", "7", "8", "8", "9"), {}, [0, 0, 0, 0, 0], 2 / 5),
        (("7", "7", "8", "8", "9"), {"ties": "all"}, [1, 1, 1, 1, 0], 2 / 5),
        (("7", "7", "8", "9"), {"min_share": 0.6}, [0, 0, 0, 0], 1 / 2),
        (("no answer", "none", "4"), {"answer": "number"}, [0, 0, 1], 1),
        (("nothing", "here"), {"answer": "number"}, [0, 0], 0),
        (("Answer: B", "answer: b, surely", "C"), {"answer": "regex", "pattern": r"answer: (\w)"}, [1, 1, 0], 1),
        (("Yes  indeed", "yes indeed", "no"), {"answer": "text"}, [1, 1, 0], 2 / 3),
        (("Yes", "yes", "yes"), {"answer": "text", "ignore_case": False}, [0, 1, 1], 2 / 3),
        ((), {}, [], None),
        (("5",), {}, [1], 1),
    ],
)
def test_votes_against_hand_checked_tables(texts, params, scores, share):
    found = vote(samples(*texts), **params)
    assert [answer.score for answer in found] == scores
    assert [answer.passed for answer in found] == [score == 1 for score in scores]
    for answer in found:
        assert answer.detail["share"] == pytest.approx(share)
        assert answer.uncertainty == pytest.approx(math.sqrt(share * (1 - share)))
        json.dumps(answer.detail)


def test_a_text_that_keeps_the_pattern_busy_fails_and_does_not_vote():
    found = vote(samples("a" * 60 + "b", "x: 7", "x: 7"), answer="regex", pattern=r"(?:a|aa)+$|x: (\d)")
    assert isinstance(found[0], Failure)
    assert [answer.score for answer in found[1:]] == [1, 1]
    assert found[1].detail["voters"] == 2


def test_prompts_vote_apart_and_a_cut_text_does_not_vote():
    both = samples("1", "1", "2") + samples("2", "2", "1", prompt="q")
    mixed = [both[i] for i in (0, 3, 1, 4, 2, 5)]
    assert [answer.score for answer in vote(mixed)] == [1, 1, 1, 1, 0, 0]
    cut = samples("3", "4", "4", truncated=(1, 2))
    assert [answer.score for answer in vote(cut)] == [1, 0, 0]
    assert [answer.score for answer in vote(cut, truncated_vote=True)] == [0, 1, 1]


@given(answers=st.lists(st.integers(0, 3), min_size=1, max_size=12), data=st.data())
def test_the_order_of_the_samples_changes_no_vote(answers, data):
    given_samples = samples(*map(str, answers))
    mixed = data.draw(st.permutations(given_samples))
    straight = dict(zip((s.rollout_id for s in given_samples), vote(given_samples), strict=True))
    assert dict(zip((s.rollout_id for s in mixed), vote(mixed), strict=True)) == straight
    winners = {answers[i] for i, s in enumerate(given_samples) if straight[s.rollout_id].passed}
    assert len(winners) <= 1
    assert all(answers.count(w) > answers.count(o) for w in winners for o in set(answers) - winners)


def test_answers_that_are_equal_compare_equal():
    assert [number(text) for text in ("1,200 apples", "1200.0", "#### 1200", "0.0", "none")] == ["1200"] * 3 + [
        "0",
        None,
    ]
    assert boxed(r"\boxed{a} then \boxed{b{c}d} and \boxed{open") == "b{c}d"
    assert final(r"\boxed{\$1,000}") == r"\$1,000"
    assert final(r"\boxed{1,000.0}") == "1000"


def test_wrong_params_are_refused():
    for params, message in [
        ({"ties": "some"}, "params.ties is 'some', expected one of none, all"),
        ({"answer": "last"}, "params.answer is 'last', expected one of final"),
        ({"answer": "regex"}, "params.pattern None"),
        ({"answr": "text"}, "unknown params"),
    ]:
        with pytest.raises(InputError, match=message):
            version_of_grader(GraderConfig(grader="majority", from_iteration=1, params=params))


def test_agreement_never_scores_held_out_prompts():
    with pytest.raises(ValidationError, match="set from_iteration to 1"):
        GraderConfig(grader="majority")
    votes = GraderConfig(grader="majority", from_iteration=1)
    config = GradingConfig(graders=[votes, GraderConfig(weight=0)])
    assert [(each.label, each.weight) for each in config.active(0, False).graders] == [("verifier", 1)]
    assert [(each.label, each.weight) for each in config.active(1, False).graders] == [("majority", 1), ("verifier", 0)]
    with pytest.raises(InputError, match="active in iteration 0"):
        GradingConfig(graders=[votes]).active(0, False)
