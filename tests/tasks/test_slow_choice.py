"""Whom a slow grader is asked about: whole groups within the budget, by value per cost, and an audit of the rest."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from storage.fingerprints import hashed_part
from tasks.grading.choosing import ALL, AUDIT, KNOWN, REST, VALUE, Expected, Group, choose
from tasks.grading.config import BudgetConfig, GraderConfig, GradingConfig

GROUPS = st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, 6), st.sampled_from([0.0, 0.1, 0.25])), min_size=1, max_size=20
).map(
    lambda rows: [
        Group(f"p{index:02d}", samples, min(samples, unknown), variance)
        for index, (samples, unknown, variance) in enumerate(rows)
    ]
)


def rules(choices):
    return {name: choice.rule for name, choice in choices.items()}


def test_the_highest_value_per_cost_comes_first():
    """Variance 0.25 of four is worth 1.0; of what costs half as much, 0.16 is worth more per cost."""
    groups = [Group("even", 4, 4, 0.25), Group("half known", 4, 2, 0.16), Group("sure", 4, 4, 0.01)]

    def spend(rollouts):
        return rules(choose(groups, BudgetConfig(max_rollouts=rollouts, audit_fraction=0), Expected(), 0))

    assert spend(3) == {"half known": VALUE, "even": REST, "sure": REST}
    assert spend(6) == {"half known": VALUE, "even": VALUE, "sure": REST}
    assert spend(10) == {"half known": VALUE, "even": VALUE, "sure": VALUE}


def test_without_a_budget_everything_is_asked_and_what_is_known_is_free():
    groups = [Group("a", 4, 4, 0.0), Group("b", 4, 0, 0.25)]
    assert rules(choose(groups, None, Expected(), 0)) == {"a": ALL, "b": KNOWN}
    assert rules(choose(groups, BudgetConfig(max_rollouts=1), Expected(), 0)) == {"a": REST, "b": KNOWN}


@pytest.mark.parametrize(
    ("budget", "expected", "asked"),
    [
        (BudgetConfig(max_cost=2.0, audit_fraction=0), Expected(cost=0.25), 2),
        (BudgetConfig(max_cost=2.0, audit_fraction=0), Expected(cost=0.5), 1),
        (BudgetConfig(max_seconds=60, audit_fraction=0), Expected(seconds=5), 3),
        (BudgetConfig(max_seconds=60, max_rollouts=4, audit_fraction=0), Expected(seconds=5), 1),
    ],
)
def test_money_and_seconds_are_counted_at_what_answers_cost_so_far(budget, expected, asked):
    groups = [Group(f"p{index}", 4, 4, 0.25) for index in range(5)]
    assert sum(choice.asked for choice in choose(groups, budget, expected, 0).values()) == asked


@settings(max_examples=200, deadline=None)
@given(groups=GROUPS, rollouts=st.integers(1, 40), audit=st.sampled_from([0.0, 0.05, 0.3, 1.0]), seed=st.integers(0, 9))
def test_the_budget_is_never_exceeded_and_probabilities_are_exact(groups, rollouts, audit, seed):
    budget = BudgetConfig(max_rollouts=rollouts, audit_fraction=audit)
    choices = choose(groups, budget, Expected(), seed)
    assert set(choices) == {group.prompt_id for group in groups}
    assert sum(group.unknown for group in groups if choices[group.prompt_id].asked) <= rollouts
    drawn = [choice for choice in choices.values() if choice.rule in (AUDIT, REST)]
    for choice in choices.values():
        assert choice.asked == (choice.rule != REST)
        share = sum(each.rule == AUDIT for each in drawn) / len(drawn) if choice in drawn else 1.0
        assert choice.probability == share
    assert choices == choose(list(reversed(groups)), budget, Expected(), seed)


def test_the_audit_reaches_every_group_of_the_rest_as_often_as_it_says():
    groups = [Group("best", 4, 4, 0.25), *(Group(f"p{index}", 4, 4, 0.0) for index in range(5))]
    budget = BudgetConfig(max_rollouts=12, audit_fraction=0.2)
    counted = Counter()
    for seed in range(400):
        choices = choose(groups, budget, Expected(), seed)
        assert choices["best"].rule == VALUE
        counted.update(name for name, choice in choices.items() if choice.rule == AUDIT)
    assert choices["p0"].probability == 2 / 5
    # 160 expected each; a standard deviation is 10.
    assert all(110 < counted[f"p{index}"] < 210 for index in range(5))


def test_slow_graders_leave_the_configuration_of_the_others_as_it_was():
    """Fields of slow graders are no part of a run's fingerprints without them."""
    assert set(hashed_part(GradingConfig())) == {"composite", "graders"}
    added = {"latency", "budget", "concurrency_limit", "cached", "chunk", "max_pending_iterations"}
    assert not added & (set(hashed_part(GraderConfig())) | set(hashed_part(GradingConfig())))


def test_the_instant_graders_of_an_iteration():
    slow = GraderConfig(grader="folder", latency="slow", weight=1.0)
    config = GradingConfig(graders=[GraderConfig(weight=0), slow])
    active = config.active(1, False)
    assert [grader.label for grader in active.slow] == ["folder"]
    assert [(grader.label, grader.weight) for grader in active.instant().graders] == [("verifier", 1.0)]
    assert [(grader.label, grader.weight) for grader in config.active(0, False).graders] == [("verifier", 1.0)]
    assert active.asking(3) != active.asking(4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"grader": "folder"}, "set latency: slow"),
        ({"grader": "haiku", "latency": "slow"}, "haiku can't be slow"),
        ({"budget": {"max_rollouts": 3}}, "a budget is for graders with latency: slow"),
    ],
)
def test_slow_graders_that_cannot_be(spec, message):
    with pytest.raises(ValidationError, match=message):
        GraderConfig(**spec)
    with pytest.raises(ValidationError, match="every grader is slow"):
        GradingConfig(graders=[GraderConfig(grader="folder", latency="slow")])
