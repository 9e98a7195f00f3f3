"""A grade depends on its own rollout alone: not on the order, the company or the time it is made in."""

import random
from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.records import BatchEntry, Grade, Rollout
from tasks.grading.config import GraderConfig
from tasks.grading.grade import grade_samples
from tasks.grading.graders import open_grader
from tasks.grading.samples import samples_of

ENTRY = '{"dataset": "chain_sum", "entry": {"question": "", "answer": "7", "metadata": {}}}'
# The verifiers of a mixed batch: (name, params, answer).
PROMPTS = [
    ("exact_match", "{}", "7"),
    ("normalised_match", '{"several": true}', '["seven", "7"]'),
    ("number", "{}", "7"),
    ("number", '{"tolerance": 0.5}', None),  # without an answer its rows fail
    ("math", "{}", r"\frac{14}{2}"),
    ("regex", '{"pattern": "(\\\\d)"}', "7"),
    ("length", '{"min_words": 2, "max_tokens": 3}', None),
    ("json", '{"schema": {"type": "integer"}}', None),
    ("format", '{"partial": true}', None),
    ("language", '{"languages": "en"}', None),
    ("repetition", '{"n": 1, "limit": 0}', None),
    ("haiku", "{}", None),
    ("reasoning_gym", ENTRY, "7"),
    ("episode", '{"environment": "guess", "params": {"number": 7}}', None),
]
TEXTS = [
    "7",
    "Seven!",
    "#### 7",
    r"\boxed{7}",
    "<think>3 + 4</think><answer>7</answer>",
    "<action>7</action>",
    "it is, it is, it is the number eight",
    "An old silent pond\nA frog jumps into the pond\nSplash! Silence again.",
    "",
]


def batch() -> pl.DataFrame:
    rows = [
        {
            "prompt_id": f"p{index}",
            "position": index,
            "samples": 1,
            "messages": [{"role": "user", "content": "hi"}],
            "answer": answer,
            "verifier": {"name": name, "params": params},
            "domain": "any",
            "rubric": None,
            "cluster_id": f"p{index}",
            "split": "train",
        }
        for index, (name, params, answer) in enumerate(PROMPTS)
    ]
    return pl.DataFrame(rows, schema=BatchEntry.create_empty().schema)


def rollouts(drawn: list[tuple[int, int, int, bool]]) -> pl.DataFrame:
    """Rollouts of (prompt, text, tokens, cut)."""
    rows = [
        {
            "rollout_id": f"r{index}",
            "prompt_id": f"p{prompt}",
            "sample_index": index,
            "iteration": 1,
            "policy_id": "policy",
            "prompt_token_ids": [1],
            "token_ids": [3] * tokens,
            "logprobs": [-0.5] * tokens,
            "text": TEXTS[text],
            "finish_reason": "length" if cut else "stop",
            "engine": "transformers",
            "sampling": "{}",
            "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        }
        for index, (prompt, text, tokens, cut) in enumerate(drawn)
    ]
    return pl.DataFrame(rows, schema=Rollout.create_empty().schema)


def grades(sampled: pl.DataFrame) -> pl.DataFrame:
    spec = GraderConfig()
    samples = list(samples_of(sampled, batch(), spec))
    made = grade_samples(samples, open_grader(spec), spec, lambda done, total, label: None)
    assert Grade.is_valid(made)
    assert made["rollout_id"].to_list() == sampled["rollout_id"].to_list()
    return made.drop("latency_s").sort("rollout_id")


DRAWN = st.lists(
    st.tuples(st.integers(0, len(PROMPTS) - 1), st.integers(0, len(TEXTS) - 1), st.integers(1, 5), st.booleans()),
    min_size=1,
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(drawn=DRAWN, seed=st.integers(0, 1000))
def test_shuffled_rollouts_get_the_same_grades(drawn, seed):
    sampled = rollouts(drawn)
    order = list(range(len(drawn)))
    random.Random(seed).shuffle(order)
    assert grades(sampled[order]).equals(grades(sampled))


@settings(max_examples=20, deadline=None)
@given(drawn=DRAWN)
def test_grading_twice_and_one_by_one_gives_the_same_grades(drawn):
    sampled = rollouts(drawn)
    once = grades(sampled)
    assert grades(sampled).equals(once)
    assert pl.concat([grades(sampled[place]) for place in range(len(drawn))]).sort("rollout_id").equals(once)


def test_the_mixture_has_right_wrong_and_failed_rows_of_every_verifier():
    """Else the two properties above would hold of nothing."""
    made = grades(rollouts([(p, t, 2, False) for p in range(len(PROMPTS)) for t in range(len(TEXTS))]))
    by_rule = made.group_by("grader_version").agg(pl.col("score").n_unique(), (pl.col("status") == "failed").any())
    assert by_rule.height == len({name for name, _, _ in PROMPTS})
    assert by_rule.filter(pl.col("score") < 2)["grader_version"].to_list() == []
    assert by_rule.filter("status")["grader_version"].to_list() == ["number/1"]


def test_equal_texts_of_other_token_counts_are_graded_apart():
    length = next(index for index, (name, _, _) in enumerate(PROMPTS) if name == "length")
    made = grades(rollouts([(length, 1, 3, False), (length, 1, 4, False)]))
    assert made["score"].to_list() == pytest.approx([0.5, 0.5])
    long = next(index for index, text in enumerate(TEXTS) if len(text.split()) > 2)
    made = grades(rollouts([(length, long, 3, False), (length, long, 6, False)]))
    assert made["score"].to_list() == pytest.approx([1, 0.5])
