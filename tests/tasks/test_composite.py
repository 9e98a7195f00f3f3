"""The composite's steps: hand-checked tables, and what holds for all numbers."""

import time

import numpy as np
import polars as pl
import pytest
from composed import NAMES, A, B, frames, parts, rewarded
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.grading.composite import composite
from tasks.grading.composite_config import CompositeConfig
from tasks.grading.config import GraderConfig, GradingConfig

ROWS = [
    {"a": 1.0, "b": 0.5, "tokens": 16_384},
    {"a": 0.5, "b": 0.5, "tokens": 18_432},
    {"a": 0.0, "b": 1.0, "tokens": 20_480},
    {"a": 0.25, "b": 0.0, "tokens": 30_000},
]
OVERLONG = {"step": "soft_overlong", "max_tokens": 20_480, "buffer_tokens": 4_096}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], [0.875, 0.5, 0.25, 0.1875]),
        ([{"step": "weighted_mean"}], [0.875, 0.5, 0.25, 0.1875]),
        ([{"step": "weighted_sum"}], [3.5, 2.0, 1.0, 0.75]),
        # 0.5^(1/4) = 0.8409; a 0 anywhere makes it 0.
        ([{"step": "product"}], [0.840896415, 0.5, 0.0, 0.0]),
        ([{"step": "threshold", "graders": ["a"], "at": 0.5}], [0.875, 0.5, 0.25, 0.0]),
        ([{"step": "threshold", "graders": ["a"], "at": 0.5, "binary": True}], [0.875, 0.875, 0.25, 0.0]),
        ([{"step": "threshold", "at": 0.5}], [0.875, 0.5, 0.0, 0.0]),
        ([{"step": "clip", "graders": ["b"], "high": 0.5}], [0.875, 0.5, 0.125, 0.1875]),
        ([{"step": "clip", "low": 0.2, "high": 0.8}], [0.8, 0.5, 0.25, 0.2]),
        ([{"step": "gate", "graders": ["b"], "at_least": 0.5, "otherwise": -1}], [0.875, 0.5, 0.25, -1]),
        ([{"step": "gate", "graders": ["a", "b"], "at_least": 0.5}], [0.875, 0.5, 0, 0]),
        # DAPO's points: 16,384 tokens cost nothing, 18,432 half, 20,480 and more a whole point.
        ([OVERLONG], [0.875, 0.0, -0.75, -0.8125]),
        ([OVERLONG | {"weight": 0.1}], [0.875, 0.45, 0.15, 0.0875]),
        (
            [{"step": "length_penalty", "per_token": 0.001, "free_tokens": 16_384}],
            [0.875, 0.5 - 2.048, 0.25 - 4.096, 0.1875 - 13.616],
        ),
        # Steps in their order: clipped before and after the penalty differ.
        ([OVERLONG, {"step": "clip", "low": -0.5}], [0.875, 0.0, -0.5, -0.5]),
        ([{"step": "clip", "low": 0.3}, OVERLONG], [0.875, 0.0, -0.7, -0.7]),
    ],
)
def test_steps_against_hand_checked_numbers(steps, expected):
    found = rewarded(ROWS, steps=steps)
    assert found["reward"].to_list() == pytest.approx(expected, abs=1e-9)
    assert found["complete"].all()


def test_gdpo_normalises_in_the_group_then_adds_then_whitens():
    rows = [{"a": a, "b": b, "group": g} for g, a, b in [(0, 0, 0.8), (0, 1, 0.4), (1, 0, 0), (1, 1, 1)]]
    steps = [
        {"step": "normalise"},
        {"step": "weighted_sum"},
        {"step": "normalise", "scope": "batch", "name": "whitened"},
    ]
    equal = GraderConfig(grader="number", name="a"), GraderConfig(grader="number", name="b")
    found = rewarded(rows, *equal, steps=steps)
    # In groups of two every normalised score is +-1/sqrt(2): they cancel in the first group, add up in the second.
    assert found["reward"].to_list() == pytest.approx(np.array([0, 0, -1, 1]) * np.sqrt(1.5), abs=1e-4)
    first = parts(found)[0]
    assert first["b/normalise"] == pytest.approx(np.sqrt(0.5) - 0.8, abs=1e-4)
    assert first["weighted_sum"] == pytest.approx(0, abs=1e-4)


def test_what_each_step_added_stays_visible():
    found = rewarded(ROWS, steps=[{"step": "clip", "graders": ["b"], "high": 0.5}, OVERLONG | {"name": "long"}])
    assert parts(found)[2] == {"a": 0.0, "b": 1.0, "b/clip": -0.5, "weighted_mean": 0.125, "long": -1.0}
    assert [set(row) for row in parts(rewarded(ROWS))] == [{"a", "b"}] * 4


def test_length_control_takes_away_what_length_explains():
    """In each group two tokens more bring 0.1 more; what is left is what the answers differ in otherwise."""
    rows = [
        {"a": 0.2 + 0.05 * t + g * 0.5, "b": 0.0, "tokens": t + 40 * g, "group": g} for g in (0, 1) for t in (0, 2, 4)
    ]
    rows[1]["a"] += 0.09
    only_a = A, GraderConfig(grader="number", name="b", weight=0)
    found = rewarded(rows, *only_a, steps=[{"step": "length_control"}])
    quality = found["reward"].to_numpy() - np.array([0.3] * 3 + [0.8] * 3)
    assert quality == pytest.approx([0, 0.09, 0, 0, 0, 0], abs=1e-9)
    over_batch = rewarded(rows, *only_a, steps=[{"step": "length_control", "within": "batch", "feature": "tanh"}])
    tokens = np.array([row["tokens"] for row in rows], dtype=float)
    feature = np.tanh((tokens - tokens.mean()) / tokens.std())
    assert abs(np.corrcoef(over_batch["reward"], feature)[0, 1]) < 1e-9
    assert over_batch["reward"].mean() == pytest.approx(np.mean([row["a"] for row in rows]))


def test_domains_have_their_own_weights_and_steps():
    rows = [{"a": 1.0, "b": 0.0, "domain": domain, "tokens": 10} for domain in ("maths", "code", "poetry")]
    domains = {
        "maths": {"weights": {"a": 0, "b": 1}},
        "code": {"steps": [{"step": "weighted_sum"}]},
    }
    steps = [{"step": "length_penalty", "per_token": 0.01}]
    found = rewarded(rows, steps=steps, domains=domains)
    assert found["reward"].to_list() == pytest.approx([-0.1, 3.0, 0.65])
    assert ["length_penalty" in row for row in parts(found)] == [True, False, True]


def test_a_gate_of_all_judges_takes_their_verdicts():
    judge = GraderConfig(grader="number", name="b", weight=0, judge=True)
    rows = [{"a": 0.7, "b": 0.2, "b_passed": passed} for passed in (True, False, None)]
    found = rewarded(rows, A, judge, steps=[{"step": "gate", "otherwise": -0.5}])
    assert found["reward"].to_list() == pytest.approx([0.7, -0.5, -0.5])
    assert found["passed"].to_list() == [True, False, False]


UNIT = st.floats(0, 1)
SCORES = st.lists(st.tuples(UNIT | st.none(), UNIT | st.none()), min_size=1, max_size=20)
STEPS = st.lists(
    st.sampled_from(
        [
            {"step": "clip", "graders": ["a"], "high": 0.6},
            {"step": "threshold", "graders": ["a", "b"], "at": 0.3},
            {"step": "weighted_sum"},
            {"step": "gate", "graders": ["b"], "at_least": 0.5},
            {"step": "length_penalty", "per_token": 0.01},
            {"step": "length_control"},
        ]
    ),
    unique_by=lambda step: step["step"],
)


@settings(deadline=None)
@given(scores=SCORES, weights=st.tuples(st.floats(0.1, 5), st.floats(0, 5)))
def test_the_default_gives_the_very_numbers_of_a_weighted_mean(scores, weights):
    rows = [dict(zip(NAMES, pair, strict=True)) for pair in scores]
    graders = [GraderConfig(grader="number", name=n, weight=w) for n, w in zip(NAMES, weights, strict=True)]
    grades, facts = frames(rows)
    found = composite(grades, graders)
    shares = [weight / sum(weights) for weight in weights]
    expected = [None if None in pair else pair[0] * shares[0] + pair[1] * shares[1] for pair in scores]
    assert found["reward"].to_list() == expected
    assert found.equals(composite(grades, graders, CompositeConfig(), facts))


@settings(deadline=None)
@given(
    scores=st.lists(st.tuples(UNIT, UNIT, st.integers(0, 3), st.integers(1, 50)), min_size=1, max_size=20), steps=STEPS
)
def test_the_reward_is_its_combination_plus_what_the_steps_added(scores, steps):
    places = [index for index, step in enumerate(steps) if step["step"] == "weighted_sum"]
    before = [s for s in steps if s["step"] in ("clip", "threshold")]
    after = [s for s in steps if s["step"] in ("gate", "length_penalty", "length_control")]
    ordered = [*before, *(steps[index] for index in places), *after]
    rows = [{"a": a, "b": b, "group": g, "tokens": t} for a, b, g, t in scores]
    found = rewarded(rows, steps=ordered)
    for reward, row in zip(found["reward"], parts(found), strict=True):
        terms = [value for name, value in row.items() if name not in NAMES and "/" not in name]
        if ordered:
            assert reward == pytest.approx(sum(terms), abs=1e-9)


@settings(deadline=None)
@given(scores=st.lists(st.tuples(UNIT, UNIT, st.integers(0, 3)), min_size=2, max_size=20), seed=st.integers(0, 99))
def test_the_order_of_rollouts_changes_nothing(scores, seed):
    rows = [{"a": a, "b": b, "group": g, "tokens": 1 + int(9 * a)} for a, b, g in scores]
    config = CompositeConfig.model_validate(
        {"steps": [{"step": "normalise"}, {"step": "weighted_sum"}, {"step": "length_control"}]}
    )
    grades, facts = frames(rows)
    shuffled = [frame.collect().sample(fraction=1, shuffle=True, seed=seed).lazy() for frame in (grades, facts)]
    straight, mixed = (composite(g, [A, B], config, f) for g, f in ((grades, facts), shuffled))
    assert straight["rollout_id"].to_list() == mixed["rollout_id"].to_list()
    assert straight["reward"].to_numpy() == pytest.approx(mixed["reward"].to_numpy(), abs=1e-9)


@given(low=UNIT, high=UNIT, other=UNIT, step=st.sampled_from(["weighted_mean", "weighted_sum", "product"]))
def test_a_better_score_never_lowers_the_reward_and_a_gate_hides_it(low, high, other, step):
    low, high = sorted((low, high))
    rows = [{"a": low, "b": other}, {"a": high, "b": other}]
    first, second = rewarded(rows, steps=[{"step": step}])["reward"]
    assert first <= second + 1e-12
    gated = rewarded(rows, steps=[{"step": step}, {"step": "gate", "graders": ["b"], "at_least": 2, "otherwise": 0.1}])
    assert gated["reward"].to_list() == [0.1, 0.1]


@given(weight=st.floats(0.1, 4), more=st.floats(0.1, 4))
def test_weight_on_the_better_score_raises_the_mean(weight, more):
    rows = [{"a": 0.9, "b": 0.1}]
    rewards = [
        rewarded(rows, GraderConfig(name="a", weight=each), GraderConfig(name="b"))["reward"][0]
        for each in (weight, weight + more)
    ]
    assert rewards[0] < rewards[1]


@pytest.mark.parametrize(
    ("composite_options", "message"),
    [
        (
            {"steps": [{"step": "gate", "graders": ["aa"]}]},
            r"composite.gate.graders: no grader is called 'aa', did you",
        ),
        ({"steps": [{"step": "clip", "graders": ["zzz"], "low": 0}]}, "no grader is called 'zzz', there are a, b"),
        ({"domains": {"code": {"weights": {"c": 1}}}}, r"composite.domains.code.weights: no grader is called 'c'"),
        ({"domains": {"code": {"weights": {"a": 0, "b": 0}}}}, "domains.code: every grader has weight 0"),
        ({"steps": [{"step": "gate"}]}, "gate names no graders and none is a judge"),
        ({"steps": [{"step": "product"}, {"step": "weighted_sum"}]}, "expected one combination"),
        ({"steps": [OVERLONG, {"step": "product"}]}, "soft_overlong acts on the reward: it comes after product"),
        (
            {"steps": [OVERLONG, {"step": "clip", "graders": ["a"], "low": 0}]},
            "it comes before weighted_mean, not after",
        ),
        ({"steps": [OVERLONG, OVERLONG]}, "two steps are called 'soft_overlong'"),
        ({"steps": [OVERLONG | {"name": "a"}]}, "a step and a grader are both called 'a'"),
        ({"steps": [{"step": "normalise"}, {"step": "product"}]}, r"product needs scores of 0 or more.*'a', 'b'"),
        ({"steps": [{"step": "clip"}]}, "clip bounds nothing"),
        ({"steps": [{"step": "clipp"}]}, "clipp"),
        ({"missing": "impute"}, "no grader has latency: slow"),
    ],
)
def test_a_composite_that_its_graders_cannot_have_is_refused_at_load(composite_options, message):
    with pytest.raises(ValidationError, match=message):
        GradingConfig(graders=[A, B], composite=composite_options)


def test_a_grader_that_is_not_active_yet_is_left_out_of_the_steps():
    late = B.model_copy(update={"from_iteration": 2, "judge": True})
    steps = [
        {"step": "clip", "graders": ["b"], "high": 0.5},
        {"step": "gate"},
        {"step": "length_penalty", "per_token": 1},
    ]
    config = GradingConfig(graders=[A, late], composite={"steps": steps, "domains": {"code": {"weights": {"b": 2}}}})
    early = config.active(1, has_reward_model=True).composite
    assert [step.kind for step in early.steps] == ["weighted_mean", "length_penalty"]
    assert early.domains["code"].weights == {}
    assert [step.kind for step in config.active(2, True).composite.steps][:1] == ["clip"]
    only_late = GradingConfig(graders=[A, late], composite={"domains": {"code": {"weights": {"a": 0}}}})
    assert only_late.active(1, has_reward_model=True).composite.domains["code"].weights == {"a": 1.0}
    assert only_late.active(2, has_reward_model=True).composite.domains["code"].weights == {"a": 0.0}


def test_a_domain_whose_weights_are_all_slow_weighs_the_instant_graders_equally():
    slow = GraderConfig(grader="folder", name="slow", latency="slow", params={"folder": "asked"})
    config = GradingConfig(graders=[A, slow], composite={"domains": {"code": {"weights": {"a": 0, "slow": 1}}}})
    assert config.active(1, False).instant().composite.domains["code"].weights == {"a": 1.0}
    assert config.active(1, False).composite.domains["code"].weights == {"a": 0.0, "slow": 1.0}


def test_held_out_prompts_are_scored_by_the_weighted_mean_unless_said_otherwise():
    steps = [{"step": "normalise"}, {"step": "weighted_sum"}]
    config = GradingConfig(graders=[A, B], composite={"steps": steps})
    assert config.active(0, has_reward_model=False).composite.is_default
    assert not config.active(1, has_reward_model=False).composite.is_default
    same = GradingConfig(graders=[A, B], composite={"steps": steps, "held_out": True})
    assert [step.kind for step in same.active(0, False).composite.steps] == ["normalise", "weighted_sum"]


def test_a_hundred_and_sixty_thousand_rollouts_take_seconds():
    random = np.random.default_rng(0)
    count = 160_000
    ids = [f"r{index:06d}" for index in range(count)]
    grades = pl.concat(
        pl.DataFrame({"rollout_id": ids, "grader": name, "status": "ok", "score": random.random(count)})
        for name in NAMES
    )
    facts = pl.DataFrame(
        {"rollout_id": ids, "group_id": [f"p{index // 8}" for index in range(count)], "domain": "",
         "tokens": random.integers(1, 2000, count)}
    )  # fmt: skip
    steps = [{"step": "normalise"}, {"step": "weighted_sum"}, {"step": "length_control", "feature": "tanh"}]
    config = CompositeConfig.model_validate({"steps": steps})
    started = time.perf_counter()
    found = composite(grades.lazy(), [A, B], config, facts.lazy())
    seconds = time.perf_counter() - started
    assert found["reward"].null_count() == 0 and len(found) == count
    print(f"{count} rollouts composed in {seconds:.1f} s")
