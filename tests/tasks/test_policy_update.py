"""The policy update on the tiny model: it learns what is rewarded, refuses another model, resumes."""

import hashlib

import numpy as np
import polars as pl
import pytest
from tiny_updates import CONFIG, CPU, NO_PARITY, SCHEMA, mean_logprob, trajectories, update, with_logprobs

from storage.errors import InputError
from storage.records import RECORDS
from tasks._training.lora import load_causal_model, load_lora
from tasks.policy_update.config import KlConfig, PolicyUpdateConfig
from tasks.policy_update.microbatches import plan_row_steps
from tasks.policy_update.rows import deal_steps, read_rows


def test_the_better_sample_becomes_more_likely(tiny_model, tmp_path):
    frame = trajectories(tiny_model)
    found = update(frame, tiny_model, tmp_path)
    change = mean_logprob(frame, tiny_model, found.folder) - frame["logprobs"].list.sum().to_numpy()
    better = frame["advantage"].to_numpy() > 0
    assert change[better].mean() > 0.1
    assert change[better].mean() > change[~better].mean() + 0.2
    assert found.metrics["trained_rows"] == 16
    assert found.metrics["tokens"] == frame["token_ids"].list.len().sum()
    RECORDS["steps"].validate(found.steps)
    first = dict(found.steps.filter(pl.col("step") == 0).select("metric", "value").iter_rows())
    assert first["ratio_mean"] == pytest.approx(1, abs=1e-4)
    assert first["grad_norm"] > 0
    assert set(first) >= {"loss", "entropy", "clipped_high", "clipped_low", "ratio_max", "ratio_effective"}


def test_the_second_update_goes_on_from_the_first_adapter(tiny_model, tmp_path):
    frame = trajectories(tiny_model)
    first = update(frame, tiny_model, tmp_path / "1")
    served = load_lora(load_causal_model(tiny_model, "float32", CPU), first.folder, trainable=False)
    again = with_logprobs(frame, served)
    second = update(again, tiny_model, tmp_path / "2", adapter=first.folder)
    better = frame["advantage"].to_numpy() > 0
    gained = mean_logprob(frame, tiny_model, second.folder) - again["logprobs"].list.sum().to_numpy()
    assert gained[better].mean() > 0.1


def test_the_parity_gate_refuses_another_model(tiny_model, tmp_path):
    frame = trajectories(tiny_model)
    assert update(frame, tiny_model, tmp_path / "a").metrics["parity_mean_difference"] < 1e-4
    other = frame.with_columns(pl.col("logprobs").list.eval(pl.element() - 0.3))
    with pytest.raises(
        InputError, match=r"engine served another model.*differ by 0\.300 nats.*at most 0\.02 in float32"
    ):
        update(other, tiny_model, tmp_path / "b")
    old = other.with_columns(pl.lit(1, pl.Int32).alias("age"))
    assert "parity_mean_difference" not in update(old, tiny_model, tmp_path / "c").metrics


def test_the_parity_gate_refuses_an_adapter_that_the_engine_did_not_serve(tiny_model, tmp_path):
    frame = trajectories(tiny_model)
    adapter = update(frame, tiny_model, tmp_path / "a", config=CONFIG.model_copy(update={"epochs": 8})).folder
    with pytest.raises(InputError, match="engine served another model"):
        update(frame, tiny_model, tmp_path / "b", adapter=adapter)
    served = load_lora(load_causal_model(tiny_model, "float32", CPU), adapter, trainable=False)
    assert (
        update(with_logprobs(frame, served), tiny_model, tmp_path / "c", adapter=adapter).metrics["trained_rows"] == 16
    )


def test_bad_answers_that_the_policy_left_do_not_train(tiny_model, tmp_path):
    """The row's mean log(pi_old / pi) is above the limit: DeepSeek-V3.2's mask; good answers stay."""
    frame = trajectories(tiny_model).with_columns(
        pl.lit(1, pl.Int32).alias("age"), pl.col("logprobs").list.eval(pl.element() + 0.6)
    )
    config = PolicyUpdateConfig.model_validate(
        CONFIG.model_dump(exclude_unset=True) | {"correction": {"negatives_within": 0.5}}
    )
    assert update(frame, tiny_model, tmp_path / "a", config=config).metrics["trained_rows"] == 4
    assert update(frame, tiny_model, tmp_path / "b").metrics["trained_rows"] == 16


def test_log_probabilities_are_those_at_the_sampling_temperature(tiny_model, tmp_path):
    frame = trajectories(tiny_model, temperature=0.5)
    assert update(frame, tiny_model, tmp_path).metrics["parity_mean_difference"] < 1e-4


@pytest.mark.parametrize("rows", ["none", "no advantage", "no weight"])
def test_nothing_to_learn_leaves_the_policy_as_it_is(tiny_model, tmp_path, rows):
    frame = trajectories(tiny_model, groups=2)
    trained = update(frame, tiny_model, tmp_path / "first").folder
    nothing = {
        "none": frame.head(0),
        "no advantage": frame.with_columns(advantage=pl.lit(0.0)),
        "no weight": frame.with_columns(weight=pl.lit(0.0)),
    }[rows]
    config = CONFIG.model_copy(update=NO_PARITY)
    found = update(nothing, tiny_model, tmp_path / "second", config=config, adapter=trained)
    assert found.metrics["trained_rows"] == 0
    assert len(found.steps) == 0
    assert contents(found.folder) == contents(trained)
    fresh = update(nothing, tiny_model, tmp_path / "third", config=config)
    assert set(contents(fresh.folder)) == {"adapter_config.json", "adapter_model.safetensors"}


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("old_logprobs", ["engine", "trainer"])
def test_a_killed_update_ends_with_the_same_bytes(tiny_model, tmp_path, old_logprobs):
    config = CONFIG.model_copy(update={"dtype": "bfloat16", "old_logprobs": old_logprobs})
    frame = trajectories(tiny_model)

    def kill(done, total, label):
        if done == 1:
            raise InterruptedError

    expected = update(frame, tiny_model, tmp_path / "undisturbed", config=config)
    with pytest.raises(InterruptedError):
        update(frame, tiny_model, tmp_path / "killed", config=config, progress=kill)
    resumed = update(frame, tiny_model, tmp_path / "killed", config=config)
    assert contents(resumed.folder) == contents(expected.folder)
    assert resumed.steps.equals(expected.steps)


def gradient_of_one_step(frame, base, scratch, **changes):
    """The adapter after a single step, whose direction is that of the gradient."""
    config = CONFIG.model_copy(update={"optimizer_steps": 1, "learning_rate": 1e-3, **changes})
    found = update(frame, base, scratch, config=config)
    return {row["metric"]: row["value"] for row in found.steps.iter_rows(named=True)}


@pytest.mark.parametrize("aggregate", ["constant", "sequence_mean", "token_mean", "sequence_sum", "prompt_mean"])
@pytest.mark.parametrize("changes", [{"tokens_per_microbatch": 20}, {"share_prefix": False}])
def test_how_rows_are_cut_changes_nothing(tiny_model, tmp_path, changes, aggregate):
    frame = trajectories(tiny_model)
    changes = changes | {"aggregate": aggregate}
    plain = gradient_of_one_step(frame, tiny_model, tmp_path / "a", aggregate=aggregate)
    cut = gradient_of_one_step(frame, tiny_model, tmp_path / "b", **changes)
    assert cut == pytest.approx(plain, rel=1e-3, abs=1e-6)


def test_rows_without_advantage_are_not_computed_but_count(tiny_model, tmp_path):
    """Dr. GRPO divides by all rows of the step: adding as many rows that teach nothing halves the gradient."""
    frame = trajectories(tiny_model, groups=2)
    silent = trajectories(tiny_model, groups=2, advantages=[[0.0] * 4] * 2, seed=9)
    silent = silent.with_columns(
        ("s" + pl.col("rollout_id")).alias("rollout_id"), ("s" + pl.col("group_id")).alias("group_id")
    )
    alone = gradient_of_one_step(frame, tiny_model, tmp_path / "a")
    beside = gradient_of_one_step(pl.concat([frame, silent]), tiny_model, tmp_path / "b")
    assert beside["tokens"] == alone["tokens"]
    assert beside["grad_norm"] == pytest.approx(alone["grad_norm"] / 2, rel=1e-3)


def test_the_kl_penalty_holds_the_policy_near_the_base(tiny_model, tmp_path):
    frame = trajectories(tiny_model)
    free = update(frame, tiny_model, tmp_path / "a", config=CONFIG.model_copy(update={"epochs": 4}))
    held_config = CONFIG.model_copy(update={"epochs": 4, "kl": KlConfig(coefficient=5.0)})
    held = update(frame, tiny_model, tmp_path / "b", config=held_config)
    start = frame["logprobs"].list.sum().to_numpy()
    moved = [np.abs(mean_logprob(frame, tiny_model, u.folder) - start).mean() for u in (free, held)]
    assert moved[1] < moved[0] / 2
    assert "kl_reference" in held.metrics
    assert "kl_reference" not in free.metrics


def test_groups_are_dealt_whole_and_every_epoch_sees_all():
    groups = np.repeat(np.arange(7), 3)
    steps = deal_steps(groups, optimizer_steps=3, epochs=2, seed=1)
    assert len(steps) == 6
    for epoch in (steps[:3], steps[3:]):
        assert sorted(np.concatenate(epoch).tolist()) == list(range(21))
        for step in epoch:
            assert all((groups[step] == group).sum() == 3 for group in set(groups[step].tolist()))
    assert [s.tolist() for s in steps[:3]] != [s.tolist() for s in steps[3:]]
    assert len(deal_steps(groups[:6], optimizer_steps=4, epochs=1, seed=1)) == 2


def test_every_row_with_an_advantage_is_planned_once(tiny_model):
    rows = read_rows(trajectories(tiny_model))
    steps = plan_row_steps(rows, np.ones(16, dtype=bool), CONFIG, seed=0, budget=30)
    planned = [r for step in steps for part in step for g in part.groups for r in g.rows]
    assert sorted(planned) == list(range(16))
    assert rows.rollout_ids[5] == "1-1"


def test_rows_without_tokens_are_left_out():
    frame = pl.DataFrame(
        [{"rollout_id": "a", "group_id": "g", "token_ids": [], "logprobs": [], "prompt_token_ids": [3]}], schema=SCHEMA
    )
    assert len(read_rows(frame)) == 0
