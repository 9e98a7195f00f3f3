"""Grades, the composite and the shards of the grading stage."""

import json
from datetime import UTC, datetime
from typing import ClassVar

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from storage.errors import InputError, StageFailed
from storage.fingerprints import hashed_part
from storage.records import BatchEntry, Grade, Reward, Rollout
from tasks._training.member_scores import MemberScores
from tasks.grading.composite import composite, grade_metrics, refuse_failures
from tasks.grading.config import GraderConfig, GradingConfig
from tasks.grading.grade import grade_samples
from tasks.grading.graders import open_grader
from tasks.grading.samples import samples_of
from tasks.grading.scores import grades_from_scores
from tasks.grading.shards import check_order, shard_at, shard_count
from tasks.grading.verdict import Verdict

HAIKU = "An old silent pond\nA frog jumps into the pond\nSplash! Silence again."


def batch(**verifiers: tuple[str, str | None]) -> pl.DataFrame:
    rows = [
        {
            "prompt_id": prompt_id,
            "position": index,
            "samples": 1,
            "messages": [{"role": "user", "content": "hi"}],
            "answer": answer,
            "verifier": {"name": name, "params": "{}"},
            "domain": "poetry",
            "rubric": None,
            "cluster_id": prompt_id,
            "split": "train",
        }
        for index, (prompt_id, (name, answer)) in enumerate(verifiers.items())
    ]
    return pl.DataFrame(rows, schema=BatchEntry.create_empty().schema)


def rollouts(*texts: tuple[str, str, str]) -> pl.DataFrame:
    """Rollouts of (prompt_id, text, finish_reason)."""
    rows = [
        {
            "rollout_id": f"r{index}",
            "prompt_id": prompt_id,
            "sample_index": index,
            "iteration": 1,
            "policy_id": "policy",
            "prompt_token_ids": [1, 2],
            "token_ids": [3],
            "logprobs": [-0.5],
            "text": text,
            "finish_reason": finish_reason,
            "engine": "transformers",
            "sampling": "{}",
            "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        }
        for index, (prompt_id, text, finish_reason) in enumerate(texts)
    ]
    return pl.DataFrame(rows, schema=Rollout.create_empty().schema)


def graded(sampled: pl.DataFrame, entries: pl.DataFrame, spec: GraderConfig) -> pl.DataFrame:
    samples = list(samples_of(sampled, entries, spec))
    return grade_samples(samples, open_grader(spec), spec, lambda done, total, label: None)


OWN_GRADERS = """
from tasks.grading.verdict import Verdict


def picky(text, answer, params):
    if "raise" in text:
        raise KeyError("no such word")
    if "large" in text:
        return Verdict(7.0)
    return Verdict(0.5)


picky.version = "3"
"""


@pytest.fixture
def own_graders(tmp_path, monkeypatch):
    (tmp_path / "own_graders.py").write_text(OWN_GRADERS)
    monkeypatch.syspath_prepend(tmp_path)


def test_each_prompt_is_graded_by_its_own_verifier():
    sampled = rollouts(("p", HAIKU, "stop"), ("q", "It is 12.", "stop"), ("q", "It is 13.", "stop"))
    grades = graded(sampled, batch(p=("haiku", None), q=("number", "12")), GraderConfig())
    assert Grade.is_valid(grades)
    assert grades["score"].to_list() == [1.0, 1.0, 0.0]
    assert grades["passed"].to_list() == [True, True, False]
    assert grades["grader"].unique().to_list() == ["verifier"]
    assert grades["grader_version"].to_list() == ["haiku/1", "number/1", "number/1"]
    assert json.loads(grades["detail"][0])["syllables"] == [5, 7, 5]


def test_equal_outputs_are_graded_and_paid_for_once():
    class Paid:
        compares_group = False
        seen: ClassVar[list[str]] = []

        def version_of(self, sample):
            return "1"

        def grade_batch(self, samples, progress):
            self.seen += [sample.text for sample in samples]
            return [Verdict(0.5, cost=0.25) for _ in samples]

    spec, sampled = GraderConfig(), rollouts(("p", "x", "stop"), ("p", "x", "stop"), ("p", "y", "stop"))
    samples = list(samples_of(sampled, batch(p=("haiku", None)), spec))
    grades = grade_samples(samples, Paid(), spec, lambda done, total, label: None)
    assert Paid.seen == ["x", "y"]
    assert grades["score"].to_list() == [0.5] * 3 and grades["cost"].to_list() == [0.25, 0.0, 0.25]


def test_a_truncated_rollout_gets_half_and_does_not_pass():
    sampled = rollouts(("p", HAIKU, "length"))
    half = graded(sampled, batch(p=("haiku", None)), GraderConfig())
    assert half.select("score", "passed").row(0) == (0.5, False)
    whole = graded(sampled, batch(p=("haiku", None)), GraderConfig(truncated_factor=1))
    assert whole["score"][0] == 1


def test_a_failing_grader_leaves_failed_rows_never_zeros(own_graders):
    sampled = rollouts(("p", "fine", "stop"), ("p", "raise", "stop"), ("p", "large", "stop"))
    spec = GraderConfig(grader="own_graders:picky", name="picky")
    grades = graded(sampled, batch(p=("haiku", None)), spec)
    assert Grade.is_valid(grades)
    assert grades["status"].to_list() == ["ok", "failed", "failed"]
    assert grades["score"].to_list() == [0.5, None, None]
    assert grades["grader_version"][0] == "own_graders:picky/3"
    assert "KeyError: 'no such word'" in json.loads(grades["detail"][1])["error"]
    assert "score is 7.0" in json.loads(grades["detail"][2])["error"]
    rewards = composite(grades.lazy(), [spec])
    assert rewards["reward"].to_list() == [0.5, None, None]
    metrics = grade_metrics(grades.lazy(), rewards)
    assert metrics["failed"] == 2 and metrics["score/picky_mean"] == 0.5 and metrics["reward_mean"] == 0.5
    refuse_failures(grades.lazy(), 0.7)
    with pytest.raises(StageFailed, match=r"picky failed on 2 of 3 rollouts.*no such word"):
        refuse_failures(grades.lazy(), 0.5)


def test_a_missing_answer_fails_its_row_only():
    sampled = rollouts(("p", "12", "stop"), ("q", "12", "stop"))
    grades = graded(sampled, batch(p=("number", None), q=("number", "12")), GraderConfig())
    assert grades["status"].to_list() == ["failed", "ok"]


def test_what_is_wrong_with_the_configuration_stops_the_stage():
    sampled = rollouts(("p", "12", "stop"))
    with pytest.raises(InputError, match="no verifier 'nope'"):
        graded(sampled, batch(p=("nope", None)), GraderConfig())
    with pytest.raises(InputError, match="unknown params"):
        graded(sampled, batch(p=("haiku", None)), GraderConfig(params={"patern": 1}))
    with pytest.raises(InputError, match="not in the batch"):
        graded(sampled, batch(q=("haiku", None)), GraderConfig())


def test_reward_model_scores_are_squashed_around_their_training_mean():
    sampled = rollouts(*[("p", "x", "stop")] * 4)
    scores = MemberScores(np.array([[2.0], [4.0], [6.0], [np.nan]]), np.array([4.0]), np.array([2.0]))
    spec = GraderConfig(grader="reward_model")
    grades = grades_from_scores(sampled, scores, grader=spec, version="f00", latency_s=0.1)
    assert Grade.is_valid(grades)
    assert grades["score"].to_list()[:3] == pytest.approx([1 / (1 + np.e), 0.5, np.e / (1 + np.e)])
    assert grades["status"].to_list() == ["ok", "ok", "ok", "failed"]
    assert grades["score"][3] is None


SCORES = st.lists(st.tuples(st.floats(0, 1) | st.none(), st.floats(0, 1) | st.none()), min_size=1, max_size=20)


@given(scores=SCORES, weights=st.tuples(st.floats(0.1, 5), st.floats(0, 5)))
def test_the_composite_is_the_weighted_mean_of_complete_rollouts(scores, weights):
    specs = [GraderConfig(name=name, weight=weight) for name, weight in zip("ab", weights, strict=True)]
    grades = pl.DataFrame(
        [
            {
                "rollout_id": f"r{index:02d}",
                "grader": name,
                "status": "failed" if score is None else "ok",
                "score": score,
            }
            for index, pair in enumerate(scores)
            for name, score in zip("ab", pair, strict=True)
        ],
        schema_overrides={"score": pl.Float64},
    )
    rewards = composite(grades.lazy(), specs)
    assert Reward.is_valid(rewards)
    for row, pair in zip(rewards.iter_rows(named=True), scores, strict=True):
        assert row["complete"] == (None not in pair)
        assert [part["value"] for part in row["components"]] == [score for score in pair if score is not None]
        if row["complete"]:
            expected = (pair[0] * weights[0] + pair[1] * weights[1]) / sum(weights)
            assert row["reward"] == pytest.approx(expected)


def test_a_rollout_that_one_grader_never_saw_is_incomplete():
    grades = pl.DataFrame({"rollout_id": ["r", "s", "s"], "grader": ["a", "a", "b"], "status": "ok", "score": 1.0})
    rewards = composite(grades.lazy(), [GraderConfig(name="a"), GraderConfig(name="b")])
    assert rewards.select("rollout_id", "reward").rows() == [("r", None), ("s", 1.0)]


@given(samples=st.lists(st.integers(1, 9), max_size=12), per_shard=st.integers(1, 30), graders=st.integers(1, 3))
def test_shards_cover_every_rollout_of_every_grader_once_and_part_no_group(samples, per_shard, graders):
    config = GradingConfig(
        graders=[GraderConfig(name=f"g{index}") for index in range(graders)], rows_per_shard=per_shard
    )
    seen, ends = [], {0, *np.cumsum(samples).tolist()}
    count = shard_count(samples, config)
    for index in range(count):
        part = shard_at(index, count, samples, config.graders)
        assert {part.first, part.first + part.rows} <= ends
        assert part.rows > 0 or not samples
        assert part.rows < per_shard + max(samples, default=1)
        seen += [(part.grader.label, row) for row in range(part.first, part.first + part.rows)]
    assert sorted(seen) == [(f"g{index}", row) for index in range(graders) for row in range(sum(samples))]


def test_shards_of_another_size_but_equal_number_are_the_same_shards():
    """An earlier attempt's shards are found by number: 10 rollouts in fives and in sixes are two shards each."""
    fives, sixes = GradingConfig(rows_per_shard=5), GradingConfig(rows_per_shard=6)
    samples = [2] * 5
    assert shard_count(samples, fives) == shard_count(samples, sixes) == 2
    assert [shard_at(index, 2, samples, fives.graders)[1:] for index in (0, 1)] == [(0, 6), (6, 4)]
    assert hashed_part(fives) == hashed_part(sixes)


def test_rollouts_in_another_order_than_their_batch_are_refused():
    check_order(["p", "q", "q"], ["o", "p", "q"], [1, 1, 2], first=1)
    with pytest.raises(InputError, match="rollout 2 is of prompt p, the batch says prompt q"):
        check_order(["q", "p"], ["o", "p", "q"], [1, 0, 2], first=1)
    with pytest.raises(InputError, match="rollout 2 is of prompt q, the batch says no more rollouts"):
        check_order(["q", "q"], ["o", "q"], [1, 1], first=1)


def test_the_graders_of_an_iteration():
    late = GraderConfig(grader="reward_model", from_iteration=2)
    config = GradingConfig(graders=[GraderConfig(), late])
    labels = [
        [grader.label for grader in config.active(iteration, has_model).graders]
        for iteration, has_model in [(0, False), (1, True), (2, False), (2, True), (3, True)]
    ]
    assert labels == [
        ["verifier"],
        ["verifier"],
        ["verifier"],
        ["verifier", "reward_model"],
        ["verifier", "reward_model"],
    ]
    assert config.active(2, True) == config.active(3, True)
    with pytest.raises(InputError, match="no grader with a weight is active in iteration 1"):
        GradingConfig(graders=[late]).active(1, False)


def test_a_configuration_that_cannot_grade_is_refused():
    with pytest.raises(ValidationError, match="two graders are called 'verifier'"):
        GradingConfig(graders=[GraderConfig(), GraderConfig()])
    with pytest.raises(ValidationError, match="every grader has weight 0"):
        GradingConfig(graders=[GraderConfig(weight=0)])
