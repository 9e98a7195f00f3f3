"""What an iteration's grades say of its prompts, and what is kept of it from night to night."""

import numpy as np
import polars as pl
import pytest
from graded_rollouts import batch_rows, committed, context, rollout_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import reader
from storage.fingerprints import hashed_part
from storage.records import BatchEntry, Grade, PromptUse, Reward
from tasks.select.config import SelectConfig
from tasks.select.draw import draw_prompts
from tasks.select.history_config import HistoryConfig, OutcomesConfig
from tasks.select.outcomes import after_outcomes, outcomes_of, recomputed, without_stale
from tasks.select.stage import record_outcomes, select
from tasks.select.strategy_config import GresoConfig

# Per rollout: prompt, verdict, score, reward (None: not complete).
ROLLOUTS = [
    *(("p0", True, 0.9, 1.0), ("p0", False, 0.4, 0.2), ("p0", False, 0.4, 0.2), ("p0", False, 0.1, 0.6)),
    *(("p1", True, 1.0, 1.0), ("p1", True, 1.0, 1.0), ("p1", None, None, None)),
    *(("p2", False, 0.0, 0.3), ("p2", False, 0.0, 0.3)),
    *(("p3", None, 0.5, 0.7), ("p3", None, 0.25, 1.5)),
]


def settings_of(outcome="auto", key="k1", reward_key="r1", **more) -> OutcomesConfig:
    skipping = more.pop("skipping", None)
    return OutcomesConfig(
        history=HistoryConfig(outcome=outcome, **more),
        grader="verifier",
        grader_key=key,
        reward_key=reward_key,
        skipping=skipping,
    )


def tables(rollouts=ROLLOUTS, version="v1", iteration=1):
    ids = [f"i{iteration}r{index:03d}" for index in range(len(rollouts))]
    frame = rollout_rows([(row[0], row[0]) for row in rollouts], iteration=iteration, prefix="x")
    frame = frame.with_columns(pl.Series("rollout_id", ids))
    grades = [
        (each, "verifier", version, "ok" if row[2] is not None else "failed", row[2], row[1], None)
        for each, row in zip(ids, rollouts, strict=True)
    ] + [(each, "style", "s", "ok", 0.5, False, None) for each in ids]
    rewards = [(each, row[3], [], row[3] is not None, None) for each, row in zip(ids, rollouts, strict=True)]
    return (
        frame,
        pl.DataFrame(
            [(*row, "{}", 0.0, 0.0, "policy") for row in grades], schema=Grade.create_empty().schema, orient="row"
        ),
        pl.DataFrame(rewards, schema=Reward.create_empty().schema, orient="row"),
    )


def outcomes(config, rollouts=ROLLOUTS, **more):
    frame, grades, rewards = tables(rollouts, **more)
    return outcomes_of(frame.lazy(), grades.lazy(), rewards.lazy(), config)


def drawn_once(*prompt_ids: str) -> pl.DataFrame:
    prompts = pl.DataFrame({"prompt_id": prompt_ids, "split": "train"})
    return draw_prompts(prompts, None, SelectConfig(prompts_per_iteration=len(prompt_ids)), 1, 0).history


def row(history: pl.DataFrame, prompt_id: str) -> dict:
    return history.row(by_predicate=pl.col("prompt_id") == prompt_id, named=True)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("auto", {"p0": (4, 1.0), "p1": (2, 2.0), "p2": (2, 0.0), "p3": (2, 1.7)}),
        ("verdict", {"p0": (4, 1.0), "p1": (2, 2.0), "p2": (2, 0.0), "p3": (0, None)}),
        ("score", {"p0": (4, 1.8), "p1": (2, 2.0), "p2": (2, 0.0), "p3": (2, 0.75)}),
        ("reward", {"p0": (4, 2.0), "p1": (2, 2.0), "p2": (2, 0.6), "p3": (2, 1.7)}),
    ],
)
def test_what_counts_as_a_success(outcome, expected):
    """Rewards and scores in part, above the range as a whole; what wasn't graded says nothing."""
    told = outcomes(settings_of(outcome))
    found = {each["prompt_id"]: (each["samples"], each["successes"]) for each in told.to_dicts()}
    assert found == {
        prompt: (samples, successes if successes is None else pytest.approx(successes))
        for prompt, (samples, successes) in expected.items()
    }


def test_the_keys_name_who_made_the_outcomes():
    keys = dict(outcomes(settings_of()).select("prompt_id", "new_outcome_key").rows())
    assert keys == {**dict.fromkeys(("p0", "p1", "p2"), "verdict:verifier:k1@v1"), "p3": "reward:r1"}


def test_an_iteration_by_hand():
    history = after_outcomes(drawn_once("p0", "p1", "p2", "p3", "p4"), outcomes(settings_of()), 1, settings_of())
    assert PromptUse.is_valid(history)
    p0, p1, p2 = (row(history, each) for each in ("p0", "p1", "p2"))
    assert (p0["alpha"], p0["beta"], p0["last_outcome"]) == (2, 4, 1)
    assert (p0["reward_weight"], p0["reward_mean"]) == (4, pytest.approx(0.5))
    assert p0["reward_variance"] == pytest.approx(np.var([1.0, 0.2, 0.2, 0.6]))
    assert (p0["easy_streak"], p0["hard_streak"]) == (0, 0)
    assert (p1["easy_streak"], p1["hard_streak"]) == (1, 0)
    assert (p2["easy_streak"], p2["hard_streak"]) == (0, 1)
    again = after_outcomes(history, outcomes(settings_of()), 2, settings_of())
    assert (row(again, "p0")["alpha"], row(again, "p0")["beta"]) == (2.5, 5.5)
    assert (row(again, "p1")["easy_streak"], row(again, "p2")["hard_streak"]) == (2, 2)
    flipped = after_outcomes(again, outcomes(settings_of(), [("p2", True, 1.0, 1.0)] * 2), 3, settings_of())
    assert (row(flipped, "p2")["easy_streak"], row(flipped, "p2")["hard_streak"]) == (1, 0)
    untouched = row(history, "p4")
    assert untouched["times_drawn"] == 1
    assert {name for name, value in untouched.items() if value is not None} == {
        "prompt_id",
        "times_drawn",
        "last_iteration",
    }


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(len(ROLLOUTS))))
def test_the_order_of_rows_changes_nothing(order):
    frame, grades, rewards = tables()
    mixed = [each[list(order)] for each in (frame, rewards)]
    config = settings_of("reward")
    told = outcomes_of(mixed[0].lazy(), grades.reverse().lazy(), mixed[1].lazy(), config)
    assert told.equals(outcomes(config))


def test_idle_evidence_is_forgotten_by_the_iteration():
    config = settings_of(idle_discount=0.5, discount=1.0)
    history = after_outcomes(drawn_once("p0"), outcomes(config), 1, config)
    assert (row(history, "p0")["alpha"], row(history, "p0")["beta"]) == (2, 4)
    next_night, later = (after_outcomes(history, outcomes(config), iteration, config) for iteration in (2, 4))
    assert (row(next_night, "p0")["alpha"], row(next_night, "p0")["beta"]) == (3, 7)
    assert (row(later, "p0")["alpha"], row(later, "p0")["beta"]) == (2.25, 4.75)


def test_a_new_reward_model_resets_what_rewards_made_and_nothing_else():
    history = after_outcomes(drawn_once("p0", "p3"), outcomes(settings_of()), 1, settings_of())
    fresh = without_stale(history, settings_of(reward_key="r2"))
    assert row(fresh, "p0")["alpha"] == 2, "the verifier's verdicts don't hang on the reward model"
    assert row(fresh, "p0")["reward_mean"] is None and row(fresh, "p0")["easy_streak"] is None
    assert row(fresh, "p3")["alpha"] is None and row(fresh, "p3")["times_drawn"] == 1
    assert without_stale(history, settings_of()).equals(history)
    other_verifier = without_stale(history, settings_of(key="k2"))
    assert row(other_verifier, "p0")["alpha"] is None and row(other_verifier, "p0")["reward_mean"] is not None


def test_a_new_version_of_the_rule_starts_from_the_prior():
    history = after_outcomes(drawn_once("p0"), outcomes(settings_of()), 1, settings_of())
    newer = after_outcomes(history, outcomes(settings_of(), version="v2"), 2, settings_of())
    assert (row(newer, "p0")["alpha"], row(newer, "p0")["beta"]) == (2, 4)
    assert row(newer, "p0")["outcome_key"] == "verdict:verifier:k1@v2"


def test_stored_grades_give_again_what_was_known():
    """A history without posteriors, from before there were any, becomes what it would have been."""
    first, second = ROLLOUTS, [*ROLLOUTS[:4], *ROLLOUTS[7:9], *ROLLOUTS[7:9]]
    config = settings_of("verdict")
    told = []
    for k, rollouts in ((1, first), (2, second)):
        frame, grades, _ = tables(rollouts, iteration=k)
        told.append(outcomes_of(frame.lazy(), grades.lazy(), None, config))
    draws = drawn_once("p0", "p1", "p2", "p3")
    kept = after_outcomes(after_outcomes(draws, told[0], 1, config), told[1], 2, config)
    again = recomputed(draws, [(1, told[0]), (2, told[1])], config)
    columns = ["prompt_id", "times_drawn", "alpha", "beta", "last_outcome", "outcome_key"]
    assert again.select(columns).equals(kept.select(columns))
    assert recomputed(kept, [(1, told[0])], config).equals(kept), "what is known isn't counted twice"


def artifacts(folder, name, rollouts=ROLLOUTS, **more):
    frame, grades, rewards = tables(rollouts, **more)
    graded = committed(folder, "grading", name, grades=grades, rewards=rewards)
    return committed(folder, "rollouts", name, rollouts=frame), graded


def test_the_stage_records_and_adapts(tmp_path, caplog):
    sampled, graded = artifacts(tmp_path, "1")
    drawn = committed(tmp_path, "select", "1", prompt_history=drawn_once("p0", "p1", "p2", "p3"))
    made = record_outcomes.function(
        drawn,
        [sampled],
        [graded],
        [],
        [],
        config=settings_of(skipping=GresoConfig(hard_target=0.2, easy_target=0.3)),
        context=context(tmp_path),
    )
    history = made.tables["prompt_history"]
    assert row(history, "p0")["alpha"] == 2 and set(history["last_outcome"]) == {1}
    assert made.metrics["all_passed_fraction"] == 0.25 and made.metrics["all_failed_fraction"] == 0.25
    assert made.facts == {"greso_rates": [pytest.approx(0.51), pytest.approx(0.49)]}
    assert made.metrics["pass_rate"] == pytest.approx(4.7 / 10), "of all rollouts"
    # p3 has no verdict, and a reward of 1.5.
    assert made.metrics["clipped"] == 1
    assert "1 of 10 outcomes lie outside select.history.reward_range, 0 to 1," in caplog.text


def test_the_stage_reads_stored_grades_where_it_is_given_them(tmp_path):
    older, newer = artifacts(tmp_path, "1"), artifacts(tmp_path, "2", ROLLOUTS[:4], iteration=2)
    draws = drawn_once("p0", "p1", "p2", "p3").with_columns(pl.lit(2, pl.Int32).alias("last_iteration"))
    drawn = committed(tmp_path, "select", "2", prompt_history=draws)
    made = record_outcomes.function(
        drawn, [newer[0]], [newer[1]], [older[0]], [older[1]], config=settings_of(), context=context(tmp_path)
    )
    history = made.tables["prompt_history"]
    assert (row(history, "p0")["alpha"], row(history, "p0")["beta"], row(history, "p0")["last_outcome"]) == (
        2.5,
        5.5,
        2,
    )
    assert (row(history, "p1")["alpha"], row(history, "p1")["last_outcome"]) == (3, 1)
    assert row(history, "p1")["reward_mean"] is None, "rewards of another night's graders are not taken"


def test_a_history_of_draws_alone_is_still_read(tmp_path):
    folder = tmp_path / "artifacts" / "select" / "old"
    folder.mkdir(parents=True)
    old = pl.DataFrame(
        {"prompt_id": ["p0", "p1"], "times_drawn": [1, 0], "last_iteration": [1, 0]},
        schema={"prompt_id": pl.String, "times_drawn": pl.Int32, "last_iteration": pl.Int32},
    )
    old.write_parquet(folder / "h.parquet")
    files = [("h.parquet", reader.sha256_of(folder / "h.parquet"))]
    read = reader.scan(str(tmp_path), "artifacts/select/old", "prompt_history", files).collect()
    assert read.columns == PromptUse.column_names() and PromptUse.is_valid(read)
    prompts = pl.DataFrame({"prompt_id": ["p0", "p1"], "split": "train"})
    found = draw_prompts(prompts, read, SelectConfig(prompts_per_iteration=1), 2, 0)
    assert found.drawn["prompt_id"].to_list() == ["p1"]


def test_new_settings_at_their_defaults_leave_old_artifacts_valid():
    """What was drawn before there were strategies has the fingerprint that it would have today."""
    plain = SelectConfig(prompts_per_iteration=4, samples_per_prompt=2)
    assert hashed_part(plain) == {"prompts_per_iteration": 4, "samples_per_prompt": 2}
    changed = plain.model_copy(update={"exploration_share": 0.5})
    assert hashed_part(changed) == {"prompts_per_iteration": 4, "samples_per_prompt": 2, "exploration_share": 0.5}
    assert select.version == 2


def test_greso_goes_on_where_the_history_left_it(tmp_path):
    prompts = batch_rows(3).with_columns(pl.lit([], pl.List(pl.String)).alias("tags"), pl.lit("here").alias("source"))
    pool = committed(tmp_path, "curate", prompts=prompts)
    before = committed(tmp_path, "history", facts={"greso_rates": [0.4, 0.6]}, prompt_history=drawn_once("p0", "p1"))
    config = SelectConfig(prompts_per_iteration=2, samples_per_prompt=3, strategy="greso")
    assert select.function(pool, before, config, seed=0).facts == {"greso_rates": [0.4, 0.6]}
    first = select.function(pool, None, config, seed=0)
    assert first.facts == {"greso_rates": [0.5, 0.5]}
    assert BatchEntry.is_valid(first.tables["batch"], cast=True) and set(first.tables["batch"]["samples"]) == {3}
    assert select.function(pool, before, SelectConfig(prompts_per_iteration=2), seed=0).facts == {}
