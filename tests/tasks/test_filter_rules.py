"""Each rule of the filter: what it drops, at what value, and that the others are left."""

from itertools import combinations

import numpy as np
import polars as pl
import pytest
from filtered import COMPONENTS, decided_of, grades_of, ledger_of, rewards_of, rule, rules
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from storage.errors import InputError
from tasks._maths.subsets import max_variance_subset
from tasks.filtering.config import FilteringConfig
from tasks.filtering.rules import RULES


def one(name, **options):
    return FilteringConfig(rules=[rule(name, **options)])


def told(decided):
    return ledger_of(decided).select("rule", "value", "threshold").rows()


KEPT = ("kept", None, None)


def test_max_variance_subsets_are_those_of_brute_force():
    """PODS (arXiv 2504.13818): best i and worst m - i hold the best of all subsets; methods.md T3: 400 cases."""
    random = np.random.default_rng(3)
    for case in range(400):
        n = int(random.integers(1, 9))
        keep = int(random.integers(1, 8))
        rewards = random.normal(size=n) if case % 2 else random.choice([0.0, 0.5, 1.0], n)
        chosen = max_variance_subset(rewards, np.zeros(n, dtype=int), keep)
        assert chosen.sum() == min(n, keep)
        best = max(np.var(rewards[list(subset)]) for subset in combinations(range(n), min(n, keep)))
        assert np.var(rewards[chosen]) == pytest.approx(best, abs=1e-12)


def test_groups_are_subset_each_for_itself():
    random = np.random.default_rng(4)
    groups = random.integers(0, 50, 400)
    rewards = random.normal(size=400) + groups
    together = max_variance_subset(rewards, groups, 3)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        alone = max_variance_subset(rewards[members], np.zeros(len(members), dtype=int), 3)
        np.testing.assert_array_equal(together[members], alone)
    with pytest.raises(ValueError, match="keep is 0"):
        max_variance_subset(rewards, groups, 0)


def test_pods_writes_the_rank_and_takes_of_what_is_left():
    rows = [(0, 0.0, "stop"), (0, 0.4, "stop"), (0, 0.6, "stop"), (0, 1.0, "abort")]
    assert told(decided_of(rows, one("max_variance", keep=2))) == [
        KEPT, ("max_variance", 3.0, 2.0), ("max_variance", 2.0, 2.0), KEPT,
    ]  # fmt: skip
    config = FilteringConfig(rules=[rule("aborted"), rule("max_variance", keep=2)])
    assert decided_of(rows, config)["kept"].to_list() == [True, False, True, False]
    blind = FilteringConfig(rules=[rule("aborted"), rule("max_variance", keep=2, sees="all")])
    assert decided_of(rows, blind)["kept"].to_list() == [True, False, False, False]


def test_groups_out_of_the_band_fall_at_the_bound_that_they_miss():
    rows = [(group, reward, "stop") for group, mean in ((0, 0.1), (1, 0.5), (2, 0.9)) for reward in (0.0, 2 * mean)]
    assert told(decided_of(rows, one("difficulty_band"))) == [
        *[("difficulty_band", pytest.approx(0.1), 0.2)] * 2, KEPT, KEPT,
        *[("difficulty_band", pytest.approx(0.9), 0.8)] * 2,
    ]  # fmt: skip
    passed = rewards_of(rows).with_columns(passed=pl.Series([True, False, True, True, None, None]))
    silent = grades_of({"a": [(0.0, None, None)] * 6})
    by_verdict = decided_of(rows, one("difficulty_band", of="passed"), rewards=passed, grades=silent)
    assert by_verdict["rule"].to_list() == ["kept"] * 2 + ["difficulty_band"] * 2 + ["kept"] * 2
    said = grades_of({"a": [(0.0, index == 0, None) for index in range(6)], "b": [(0.0, True, None)] * 6})
    by_graders = decided_of(rows, one("difficulty_band", of="passed"), grades=said)
    assert by_graders["rule"].to_list() == ["kept"] * 2 + ["difficulty_band"] * 4
    with pytest.raises(InputError, match="no grader says what passes"):
        decided_of(rows, one("difficulty_band", of="passed"), grades=silent)
    with pytest.raises(ValidationError, match="expected at most high"):
        rule("difficulty_band", low=0.9)


def test_uncertain_rollouts_fall_and_unknown_ones_stay():
    rows = [(0, 0.0, "stop"), (0, 1.0, "stop"), (0, 1.0, "stop"), (0, 0.5, "stop")]
    grades = grades_of(
        {"rm": [(0.0, None, 0.1), (1.0, None, 0.5), (1.0, None, None), None], "other": [(1.0, None, 0.3)] * 4}
    )
    named = decided_of(rows, one("uncertain", grader="rm", threshold=0.4), grades=grades)
    assert told(named) == [KEPT, ("uncertain", 0.5, 0.4), KEPT, KEPT]
    largest = decided_of(rows, one("uncertain", threshold=0.2), grades=grades)
    assert [value for _, value, _ in told(largest)] == [0.3, 0.5, 0.3, 0.3]
    by_rank = decided_of(rows, one("uncertain", grader="rm", quantile=0.5), grades=grades)
    assert told(by_rank)[1] == ("uncertain", 0.5, pytest.approx(0.3))
    with pytest.raises(InputError, match="rule uncertain reads the graders' grades"):
        decided_of(rows, one("uncertain", threshold=0.4))
    with pytest.raises(ValidationError, match="takes one limit"):
        rule("uncertain")


def test_groups_whose_rewards_differ_less_than_the_graders_noise_fall():
    rows = [(0, 0.0, "stop"), (0, 0.2, "stop"), (1, 0.0, "stop"), (1, 1.0, "stop"), (2, 0.4, "stop"), (2, 0.5, "stop")]
    grades = grades_of({"rm": [(0.0, None, 0.2)] * 4 + [(0.0, None, 0.0), (0.0, None, None)]})
    assert told(decided_of(rows, one("signal_to_noise"), grades=grades)) == [
        *[("signal_to_noise", pytest.approx(0.5), 1.0)] * 2, KEPT, KEPT, KEPT, KEPT,
    ]  # fmt: skip


def test_graders_that_disagree_by_score_or_by_verdict():
    rows = [(0, 0.5, "stop")] * 3
    components = [
        [{"name": "a", "value": 0.1}, {"name": "b", "value": 0.9}],
        [{"name": "a", "value": 0.1}, {"name": "b", "value": 0.2}],
        [{"name": "a", "value": 0.1}],
    ]
    rewards = rewards_of(rows).with_columns(components=pl.Series(components, dtype=COMPONENTS))
    by_score = decided_of(rows, one("disagreement", graders=["a", "b"]), rewards=rewards)
    assert told(by_score) == [("disagreement", pytest.approx(0.8), 0.5), KEPT, KEPT]
    grades = grades_of({"a": [(0, True, None)] * 3, "b": [(0, True, None), (0, False, None), (0, None, None)]})
    by_verdict = decided_of(rows, one("disagreement", graders=["a", "b"], by="verdict"), grades=grades)
    assert told(by_verdict) == [KEPT, ("disagreement", 1.0, 0.0), KEPT]


def test_old_rollouts_fall_by_the_iteration_that_they_are_filtered_in():
    rows = [(0, 0.0, "stop"), (0, 1.0, "stop")]
    assert decided_of(rows, one("stale", threshold=2), iteration=5)["kept"].all()
    assert told(decided_of(rows, one("stale", threshold=2), iteration=6)) == [("stale", 3.0, 2.0)] * 2


def test_a_whole_group_falls_with_one_rollout_where_the_scope_is_the_group():
    rows = [(0, 0.0, "stop"), (0, 1.0, "length"), (1, 0.0, "stop"), (1, 1.0, "stop")]
    assert told(decided_of(rows, one("truncated", scope="group"))) == [("truncated", 1.0, None)] * 2 + [KEPT] * 2


def test_texts_in_another_language_fall_and_short_ones_stay():
    texts = [
        "The weather is lovely today and we are going for a walk in the park.",
        "Das Wetter ist heute schön, und wir gehen im Park spazieren.",
        "42",
    ]
    decided = decided_of([(0, 0.5, "stop")] * 3, one("wrong_language", languages=["en"]), texts=texts)
    assert decided["rule"].to_list() == ["kept", "wrong_language", "kept"]
    assert decided["value"][1] < 0.5 == decided["threshold"][1]


def test_outputs_that_go_in_circles_fall():
    tokens = [[1, 2, 3] * 10, list(range(30)), [7], []]
    decided = decided_of([(0, 0.5, "stop")] * 4, one("repetition", n=3), tokens=tokens)
    assert told(decided) == [("repetition", pytest.approx(1 - 3 / 28), 0.5), KEPT, KEPT, KEPT]


@settings(max_examples=60, deadline=None)
@given(
    rewards=st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=6), min_size=1, max_size=8),
    strength=st.floats(0, 4),
)
def test_moderate_groups_weigh_more_at_a_mean_weight_of_one(rewards, strength):
    rows = [(group, reward, "stop") for group, members in enumerate(rewards) for reward in members]
    decided = decided_of(rows, FilteringConfig(rules=[rule("oversample", strength=strength), rule("no_variance")]))
    kept = decided.filter("kept")
    if len(kept):
        assert kept["weight"].mean() == pytest.approx(1)
    spread = kept.with_columns(spread=pl.col("reward").std(ddof=0).over("group_id")).sort("spread")
    assert (spread["weight"].diff().drop_nulls() >= -1e-9).all()


def test_every_rule_of_a_run_file_is_in_the_table():
    with pytest.raises(ValidationError, match="does not match any of the expected tags") as raised:
        rule("no_such_rule")
    assert all(f"'{name}'" in str(raised.value) for name in RULES)
    assert str(raised.value).count("', '") == len(RULES) - 1
    with pytest.raises(ValidationError, match="Extra inputs"):
        rule("truncated", keep=3)
    assert rules("aborted").earlier_nights == 0
    assert one("redundant_across", nights=3).earlier_nights == 3
