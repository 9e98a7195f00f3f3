"""The policy update on the tiny model: it learns what is rewarded, refuses another model, resumes."""

import hashlib

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from flows.algorithms import ALGORITHMS, under
from storage.errors import InputError
from storage.records import RECORDS
from tasks._maths.advantages import ADVANTAGES, per_component
from tasks._training.lora import load_causal_model, load_lora
from tasks.policy_update.config import KlConfig, ParityConfig, PolicyUpdateConfig
from tasks.policy_update.measure import recompute_all
from tasks.policy_update.microbatches import plan_row_steps
from tasks.policy_update.policy import PolicyFolders
from tasks.policy_update.processes import update_in_processes
from tasks.policy_update.rows import check_served, deal_steps, join_replayed, read_rows
from tasks.policy_update.update import Lessons, update_policy

CPU = torch.device("cpu")
CONFIG = PolicyUpdateConfig(
    learning_rate=5e-3,
    optimizer_steps=2,
    max_tokens=8,
    dtype="float32",
    device="cpu",
    lora={"rank": 4, "alpha": 8},
    parity={"engine_dtype": "float32"},
)
NO_PARITY = {"parity": ParityConfig(enabled=False)}
SCHEMA = RECORDS["trajectories"].create_empty().schema


def quiet(done, total, label):
    pass


def trajectories(model_folder, groups=4, samples=4, advantages=None, seed=0, temperature=1.0):
    """Random samples with the log-probabilities that the model gives them, as an engine would have logged them."""
    random = np.random.default_rng(seed)
    rows = []
    for group in range(groups):
        prompt = random.integers(3, 300, 4 + group).tolist()
        for sample in range(samples):
            advantage = advantages[group][sample] if advantages else (1.0 if sample == 0 else -1.0 / (samples - 1))
            tokens = random.integers(3, 300, int(random.integers(1, 8))).tolist()
            rows.append(
                dict(rollout_id=f"{group}-{sample}", group_id=f"g{group}", prompt_id=f"g{group}", policy_id="p")
                | dict(prompt_token_ids=prompt, token_ids=tokens, logprobs=[0.0] * len(tokens))
                | dict(
                    temperature=temperature,
                    reward=advantage,
                    advantage=advantage,
                    weight=1.0,
                    age=0,
                    passed=sample == 0,
                )
            )
    frame = pl.DataFrame(rows, schema=SCHEMA)
    return with_logprobs(frame, load_causal_model(model_folder, "float32", CPU))


def with_logprobs(frame, model):
    rows = read_rows(frame)
    found, _ = recompute_all(model, rows, CONFIG)
    return frame.with_columns(pl.Series("logprobs", [line.tolist() for line in found], dtype=SCHEMA["logprobs"]))


def update(frame, base, scratch, config=CONFIG, adapter=None, progress=quiet, seed=3, reference=None):
    lessons = Lessons(frame, reference=reference)
    return update_policy(lessons, PolicyFolders(base, adapter), config, seed=seed, scratch=scratch, progress=progress)


def mean_logprob(frame, base, adapter):
    """Per row, the sum of its tokens' log-probabilities under base and adapter."""
    model = load_lora(load_causal_model(base, "float32", CPU), adapter, trainable=False)
    return with_logprobs(frame, model)["logprobs"].list.sum().to_numpy()


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
    joined = join_replayed(frame, [renamed, frame], max_age=None)
    assert joined["age"].to_list() == [0] * 8 + [1] * 8
    assert joined["group_id"].n_unique() == 4
    assert len(join_replayed(frame, [renamed], max_age=0)) == 8


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


@pytest.mark.parametrize("changes", [{"algorithm": "ppo"}, {"algorithm": "iterated_dpo"}, {"parameters": "full"}])
def test_two_processes_train_the_same_policy(tiny_model, tmp_path, changes):
    """Two gloo processes under torchrun against one: the update differs by rounding only."""
    frame = trajectories(tiny_model)
    config = algorithm(changes.get("algorithm", "dr_grpo"), learning_rate=1e-3)
    config = config.model_copy(update={"processes": 2, "parameters": changes.get("parameters", "lora")})
    (tmp_path / "two").mkdir()
    alone = update(frame, tiny_model, tmp_path / "one", config=config)
    shared = update_in_processes(Lessons(frame), PolicyFolders(tiny_model), config, seed=3, scratch=tmp_path / "two")
    assert {path.name for path in shared.folder.iterdir()} == {path.name for path in alone.folder.iterdir()}
    for name in ("adapter_model.safetensors", "model.safetensors", "value_head.safetensors"):
        if (alone.folder / name).is_file():
            found, expected = load_file(shared.folder / name), load_file(alone.folder / name)
            for key, tensor in expected.items():
                torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=2e-5)
    assert shared.steps["metric"].to_list() == alone.steps["metric"].to_list()


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
