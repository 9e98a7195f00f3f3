"""The stage over committed artifacts: in pieces the same as at once, nights that follow each other, grades beside."""

import hashlib
from pathlib import Path

import polars as pl
import pytest
from filtered import grades_of, rewards_of, rule
from graded_rollouts import committed, context, rollout_rows

from storage.errors import InputError
from storage.reader import batches
from storage.records import Reward
from tasks.filtering import stage
from tasks.filtering.config import FilteringConfig
from tasks.filtering.rounds_stage import count_survivors


def night(folder, iteration, texts, rewards, grades=None, frames=3):
    """Rollouts in several frames, and their grading."""
    prefix = f"i{iteration}r"
    rows = rollout_rows(texts, iteration=iteration, prefix=prefix)
    made = rewards_of([(prompt, reward, "stop") for (prompt, _), reward in zip(texts, rewards, strict=True)])
    made = made.with_columns(rollout_id=rows["rollout_id"]).select(Reward.column_names())
    tables = {"rewards": made} if grades is None else {"rewards": made, "grades": grades}
    rollouts = committed(folder, "rollouts", str(iteration), rollouts=rows.iter_slices(frames))
    return rollouts, committed(folder, "grading", str(iteration), **tables)


def filter_night(folder, iteration, rollouts, rewards, config, earlier=()):
    outputs = stage.filter_rollouts.function(
        rollouts=rollouts, rewards=rewards, config=config, earlier=earlier, context=context(folder, iteration)
    )
    return committed(folder, "filtering", f"{iteration}x{id(outputs)}", **outputs.tables), outputs.metrics


TEXTS = [(f"p{index // 4}", f"answer number {index % 3} of {index // 4}") for index in range(16)]
REWARDS = [float(index % 2 == 0 and index > 4) for index in range(16)]
CONFIG = FilteringConfig(rules=[rule("no_variance"), rule("redundant_across", by="text", nights=1, min_tokens=0)])


def test_pieces_of_any_size_make_the_same_tables(tmp_path, monkeypatch):
    rollouts, rewards = night(tmp_path, 1, TEXTS, REWARDS)
    whole, metrics = filter_night(tmp_path, 1, rollouts, rewards, CONFIG)
    monkeypatch.setattr(stage, "BATCH_ROWS", 2)
    pieces, again = filter_night(tmp_path, 1, rollouts, rewards, CONFIG)
    assert metrics == again and metrics["groups_without_variance"] == 1
    for table in ("trajectories", "ledger", "signatures"):
        assert pieces.read(table).equals(whole.read(table))
    assert len(whole.read("ledger")) == 16 and len(whole.read("trajectories")) == metrics["kept"] == 12


def test_what_an_earlier_night_kept_is_not_trained_again(tmp_path):
    first, _ = filter_night(tmp_path, 1, *night(tmp_path, 1, TEXTS, REWARDS), CONFIG)
    again = [(prompt, text.upper()) for prompt, text in TEXTS[:8]] + [("p9", "new"), ("p9", "newer")]
    rollouts, rewards = night(tmp_path, 2, again, [0.0, 1.0] * 5)
    second, metrics = filter_night(tmp_path, 2, rollouts, rewards, CONFIG, [first])
    # The first group of the first night fell: its texts are new.
    assert second.read("ledger")["rule"].to_list() == ["kept"] * 4 + ["redundant_across"] * 4 + ["kept"] * 2
    assert metrics["dropped_redundant_across"] == 4 and metrics["effective_groups"] == 2
    # A refill counts the groups that the filter will leave, not those that it would without that night.
    counted = [
        count_survivors.function(
            rollouts=[rollouts], rewards=rewards, config=CONFIG, earlier=nights, context=context(tmp_path, 2)
        ).metrics["surviving"]
        for nights in ([first], [])
    ]
    assert counted == [2, 3]
    _, forgotten = filter_night(tmp_path, 3, rollouts, rewards, CONFIG, [second, first])
    assert forgotten["kept"] == 4


def test_pass_rates_and_uncertainty_come_from_the_grades(tmp_path):
    said = [(1.0, index < 6, 0.1 * (index % 2)) for index in range(16)]
    grades = grades_of({"verifier": said}, prefix="i1r").collect()
    grades = grades.with_columns(rollout_id=pl.Series([f"i1r{index}" for index in range(16)]))
    rollouts, rewards = night(tmp_path, 1, TEXTS, REWARDS, grades)
    config = FilteringConfig(rules=[rule("uncertain", threshold=0.05)])
    _, metrics = filter_night(tmp_path, 1, rollouts, rewards, config)
    assert metrics["pass_rate"] == 6 / 16 and metrics["dropped_uncertain"] == 8
    without, ungraded = night(tmp_path, 2, TEXTS, REWARDS)
    with pytest.raises(InputError, match="there are none"):
        filter_night(tmp_path, 2, without, ungraded, config)


def test_a_column_that_came_later_is_null_in_batches_too(tmp_path):
    _, rewards = night(tmp_path, 1, TEXTS, REWARDS)
    stored = next(Path(rewards.root).glob(f"{rewards.folder}/rewards-*.parquet"))
    assert rewards.read("rewards")["passed"].null_count() == 16
    older = tmp_path / "older"
    older.mkdir()
    pl.read_parquet(stored).drop("passed").write_parquet(older / "part.parquet")
    digest = hashlib.sha256((older / "part.parquet").read_bytes()).hexdigest()
    columns = ["passed", "reward"]
    [batch] = batches(str(tmp_path), "older", "rewards", [("part.parquet", digest)], columns, 100)
    assert batch.columns == columns and batch["passed"].is_null().all() and batch["reward"].to_list() == REWARDS
