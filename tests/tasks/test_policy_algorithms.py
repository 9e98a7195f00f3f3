"""Every algorithm on the tiny model: what it learns from the same trajectories, alone and in several processes."""

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from tiny_updates import CONFIG, CPU, mean_logprob, quiet, trajectories, update, with_logprobs

from flows.algorithms import ALGORITHMS, under
from storage.errors import InputError
from storage.records import RECORDS
from tasks._maths.advantages import ADVANTAGES, per_component
from tasks._training.lora import load_causal_model, load_lora
from tasks.policy_update.config import KlConfig, ParityConfig, PolicyUpdateConfig
from tasks.policy_update.policy import FULL, PolicyFolders
from tasks.policy_update.processes import update_in_processes
from tasks.policy_update.rows import check_served, join_replayed, read_rows
from tasks.policy_update.update import Lessons, update_policy


def algorithm(name, **changes):
    """CONFIG as the algorithm `name` sets it."""
    settings = under(CONFIG.model_dump(exclude_unset=True), ALGORITHMS[name].policy_update)
    return PolicyUpdateConfig.model_validate(under(changes, settings))


TRAJECTORY_ALGORITHMS = [name for name in ALGORITHMS if not algorithm(name).on_stored_pairs]


@pytest.mark.parametrize("name", TRAJECTORY_ALGORITHMS)
def test_every_algorithm_prefers_the_better_sample(tiny_model, tmp_path, name):
    """The log-probability of the better samples rises against that of the others, from the same trajectories."""
    frame = trajectories(tiny_model)
    method = ALGORITHMS[name].filtering.get("advantage", "group_mean")
    rewards, groups = frame["reward"].to_numpy(), frame["group_id"].rank("dense").to_numpy()
    kinds = {"per_component": lambda r, g: per_component(r[:, None], np.ones(1), g)}
    frame = frame.with_columns(advantage=pl.Series((kinds | ADVANTAGES)[method](rewards, groups)))
    found = update(frame, tiny_model, tmp_path, config=algorithm(name, epochs=2))
    change = mean_logprob(frame, tiny_model, found.folder) - frame["logprobs"].list.sum().to_numpy()
    better = frame["reward"].to_numpy() > 0
    assert change[better].mean() > change[~better].mean() + 0.02
    assert found.metrics["trained_rows"] > 0
    assert all(np.isfinite(value) for value in found.metrics.values())


@pytest.mark.parametrize("name", TRAJECTORY_ALGORITHMS)
def test_without_trajectories_every_algorithm_leaves_the_policy_as_it_is(tiny_model, tmp_path, name):
    frame = trajectories(tiny_model, groups=1)
    adapter = update(frame, tiny_model, tmp_path / "1").folder
    found = update(frame.head(0), tiny_model, tmp_path / "2", config=algorithm(name), adapter=adapter)
    assert found.metrics["trained_rows"] == 0
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, found.folder))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_ktos_reference_point_is_measured_on_unrelated_answers(tiny_model, tmp_path):
    """Before the first step the policy is its reference, so the point is 0; later steps have moved it."""
    frame = trajectories(tiny_model)
    config = algorithm("kto", epochs=6, learning_rate=2e-2)
    steps = update(frame, tiny_model, tmp_path, config=config).steps
    points = steps.filter(pl.col("metric") == "reference_point")["value"].to_list()
    assert points[0] == pytest.approx(0, abs=1e-4)
    assert abs(points[-1]) > 1e-3
    rows = read_rows(frame)
    strangers = rows.unrelated()
    for row, response in enumerate(strangers.responses):
        found = [n for n, other in enumerate(rows.responses) if other is response]
        assert all(rows.groups[n] != rows.groups[row] for n in found)
    assert len({id(response) for response in strangers.responses}) == len(rows)


def test_small_steps_add_up_over_updates_of_full_weights(tiny_model, tmp_path):
    """Float32 masters are what is stored: rounded to bfloat16 in between, most of such steps would be lost."""
    frame = trajectories(tiny_model)
    config = CONFIG.model_copy(
        update={"parameters": "full", "learning_rate": 1e-6, "dtype": "bfloat16", "parity": ParityConfig(enabled=False)}
    )
    folders, moved = PolicyFolders(tiny_model), []
    start = load_file(next(tiny_model.glob("*.safetensors")))
    for number in range(3):
        found = update_policy(Lessons(frame), folders, config, seed=3, scratch=tmp_path / str(number), progress=quiet)
        folders = PolicyFolders(tiny_model, found.folder, FULL)
        weights = load_file(found.folder / "model.safetensors")
        name = next(key for key in weights if "q_proj" in key)
        moved.append(float((weights[name].float() - start[name].float()).abs().mean()))
    assert moved[1] > 1.5 * moved[0]
    assert moved[2] > 1.3 * moved[1]


def test_a_critic_learns_the_rewards_and_is_handed_on(tiny_model, tmp_path):
    frame = trajectories(tiny_model).with_columns(reward=pl.lit(0.5), advantage=pl.lit(0.5))
    config = algorithm("ppo", epochs=8, kl={"coefficient": 0.0})
    first = update(frame, tiny_model, tmp_path / "1", config=config)
    errors = first.steps.filter(pl.col("metric") == "value_error")["value"].to_list()
    assert errors[-1] < errors[0] / 2
    served = load_lora(load_causal_model(tiny_model, "float32", CPU), first.folder, trainable=False)
    again = with_logprobs(frame, served)
    second = update(again, tiny_model, tmp_path / "2", config=config, adapter=first.folder)
    start = second.steps.filter(pl.col("metric") == "value_error")["value"].to_list()[0]
    assert start < errors[0] / 2
    without = update(again, tiny_model, tmp_path / "3", adapter=first.folder)
    assert (without.folder / "value_head.safetensors").read_bytes() == (
        first.folder / "value_head.safetensors"
    ).read_bytes()


def test_a_reference_of_its_own_is_measured_once(tiny_model, tmp_path):
    """After an update the reference is the first policy: its divergence is that of the adapter from the base."""
    frame = trajectories(tiny_model)
    first = update(frame, tiny_model, tmp_path / "1")
    again = with_logprobs(
        frame, load_lora(load_causal_model(tiny_model, "float32", CPU), first.folder, trainable=False)
    )
    config = CONFIG.model_copy(
        update={"kl": KlConfig(coefficient=1e-6, estimator="k1"), "optimizer_steps": 1, "learning_rate": 1e-9}
    )
    found = update(
        again, tiny_model, tmp_path / "2", config=config, adapter=first.folder, reference=PolicyFolders(tiny_model)
    )
    tokens = frame["token_ids"].list.len().sum()
    expected = (again["logprobs"].list.sum() - frame["logprobs"].list.sum()).sum() / tokens
    assert found.metrics["kl_reference"] == pytest.approx(expected, rel=1e-3)
    start = update(again, tiny_model, tmp_path / "3", config=config, adapter=first.folder)
    assert start.metrics["kl_reference"] == pytest.approx(0, abs=1e-5)


def test_old_rollouts_are_corrected_and_what_the_correction_did_is_logged(tiny_model, tmp_path):
    frame = trajectories(tiny_model)
    moved = update(frame, tiny_model, tmp_path / "1", config=CONFIG.model_copy(update={"epochs": 6}))
    old = frame.with_columns(pl.lit(2, pl.Int32).alias("age"))
    correction = {"kind": "truncate", "high": 1.5}
    config = PolicyUpdateConfig.model_validate(CONFIG.model_dump(exclude_unset=True) | {"correction": correction})
    found = update(old, tiny_model, tmp_path / "2", config=config, adapter=moved.folder).metrics
    policy = load_lora(load_causal_model(tiny_model, "float32", CPU), moved.folder, trainable=False)
    log_ratios = [
        np.array(new) - np.array(before)
        for new, before in zip(with_logprobs(frame, policy)["logprobs"], frame["logprobs"], strict=True)
    ]
    ratios = np.exp(np.concatenate(log_ratios))
    assert found["correction_mean"] == pytest.approx(ratios.mean(), rel=1e-3)
    assert found["correction_max"] == pytest.approx(ratios.max(), rel=1e-3)
    assert found["correction_effective"] == pytest.approx(
        ratios.sum() ** 2 / (len(ratios) * (ratios**2).sum()), rel=1e-3
    )
    assert found["ratio_mean"] < ratios.mean()


def test_replayed_trajectories_are_older_groups_of_their_own(tiny_model):
    frame = trajectories(tiny_model, groups=2)
    renamed = frame.with_columns(("r" + pl.col("rollout_id")).alias("rollout_id"))
    joined = join_replayed(frame, [(1, renamed), (2, frame)], max_age=None)
    assert joined["age"].to_list() == [0] * 8 + [1] * 8
    assert joined["group_id"].n_unique() == 4
    assert join_replayed(frame, [(3, renamed)], max_age=None)["age"].to_list() == [0] * 8 + [3] * 8
    assert len(join_replayed(frame, [(1, renamed)], max_age=0)) == 8


def test_rollouts_of_another_policy_are_refused(tiny_model):
    frame = trajectories(tiny_model, groups=1)
    check_served(frame, "p")
    with pytest.raises(InputError, match="the engine served policy p, policy other is to be trained"):
        check_served(frame, "other")
    check_served(frame.with_columns(pl.lit(1, pl.Int32).alias("age")), "other")


def test_without_a_judge_cgpo_says_what_is_missing(tiny_model, tmp_path):
    frame = trajectories(tiny_model).with_columns(pl.lit(None, pl.Boolean).alias("passed"))
    with pytest.raises(InputError, match="set judge: true"):
        update(frame, tiny_model, tmp_path, config=algorithm("crpg"))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"algorithm": "ppo"}, marks=pytest.mark.slow),
        {"algorithm": "kto"},
        {"algorithm": "ppo", "parameters": "full"},
    ],
)
def test_two_processes_train_the_same_policy(tiny_model, tmp_path, changes):
    """Two gloo processes under torchrun against one: the update differs by rounding only."""
    frame = trajectories(tiny_model)
    config = algorithm(changes.get("algorithm", "dr_grpo"), learning_rate=1e-3)
    config = config.model_copy(update={"processes": 2, "parameters": changes.get("parameters", "lora")})
    (tmp_path / "two").mkdir()
    alone = update(frame, tiny_model, tmp_path / "one", config=config)
    told = []
    shared = update_in_processes(
        Lessons(frame),
        PolicyFolders(tiny_model),
        config,
        seed=3,
        scratch=tmp_path / "two",
        progress=lambda *n: told.append(n),
    )
    assert {path.name for path in shared.folder.iterdir()} == {path.name for path in alone.folder.iterdir()}
    for name in ("adapter_model.safetensors", "model.safetensors", "value_head.safetensors"):
        if (alone.folder / name).is_file():
            found, expected = load_file(shared.folder / name), load_file(alone.folder / name)
            for key, tensor in expected.items():
                torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-4)
    assert shared.steps["metric"].to_list() == alone.steps["metric"].to_list()
    norms = [made.steps.filter(pl.col("metric") == "grad_norm")["value"].to_numpy() for made in (shared, alone)]
    np.testing.assert_allclose(*norms, rtol=1e-3)
    assert told[-1][1:] == (2 * config.epochs, "optimizer steps")


def test_several_processes_refuse_with_the_same_line(tiny_model, tmp_path):
    frame = trajectories(tiny_model).with_columns(pl.col("logprobs").list.eval(pl.element() - 0.3))
    config = CONFIG.model_copy(update={"processes": 2})
    with pytest.raises(InputError, match="engine served another model"):
        update_in_processes(Lessons(frame), PolicyFolders(tiny_model), config, seed=3, scratch=tmp_path, progress=quiet)


def test_stored_pairs_train_the_chosen_answers(tiny_model, tmp_path):
    pairs = pl.DataFrame(
        [
            {
                "pair_id": f"{number}",
                "prompt_id": f"p{number}",
                "cluster_id": f"c{number}",
                "messages": [{"role": "user", "content": f"say {number}"}],
                "chosen": "good words here",
                "rejected": "bad sounds there now",
                "source": "grader",
                "split": "train" if number else "eval",
            }
            for number in range(4)
        ],
        schema=RECORDS["preferences"].create_empty().schema,
    )
    config = algorithm("dpo", epochs=4, learning_rate=5e-3, pairs={"sft_weight": 0.2})
    lessons = Lessons(trajectories(tiny_model).head(0), pairs)
    found = update_policy(lessons, PolicyFolders(tiny_model), config, seed=1, scratch=tmp_path, progress=quiet)
    assert found.metrics["trained_rows"] == 6
    margins = found.steps.filter(pl.col("metric") == "pair_margin")["value"].to_list()
    assert margins[0] == pytest.approx(0, abs=1e-4)
    assert margins[-1] > 0.05
    with pytest.raises(InputError, match="source is preferences, and there are none"):
        update(trajectories(tiny_model), tiny_model, tmp_path / "none", config=config)
