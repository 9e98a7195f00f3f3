"""The training bench: packed rows equal single rows, a killed update resumes bit for bit, bad numbers are named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from storage.errors import InputError, StageFailed
from tasks._maths.objectives import LossOutputs
from tasks._training import logprobs as logprobs_module
from tasks._training.batching import group_rows, plan_microbatches
from tasks._training.heads import (
    HeadDescription,
    ended,
    fresh_scoring_model,
    save_scoring_model,
    score_rows,
)
from tasks._training.logprobs import check_plain_head, token_logprobs
from tasks._training.loop import OptimizerSpec, Surroundings, Work, train
from tasks._training.lora import (
    LoraSpec,
    attach_lora,
    load_causal_model,
    load_lora,
    save_lora,
    trainable_parameters,
)
from tasks._training.packing import pack
from tasks._training.reward_models import score

CPU = torch.device("cpu")
SPEC = LoraSpec(rank=4, alpha=8)
OPTIMIZER = OptimizerSpec(learning_rate=1e-2, warmup_steps=1, max_grad_norm=1.0, weight_decay=0.0)


def rows(seed=0, shapes=((5, (3, 1, 7)), (9, (4, 4)), (2, (6,)))):
    """Prompts and responses: per prompt length, the lengths of its responses."""
    random = np.random.default_rng(seed)
    prompts, responses = [], []
    for prompt_length, lengths in shapes:
        prompt = random.integers(3, 300, prompt_length).astype(np.int32)
        for length in lengths:
            prompts.append(prompt)
            responses.append(random.integers(3, 300, length).astype(np.int32))
    return prompts, responses


@pytest.fixture
def policy(tiny_model):
    """The tiny model in float32 with an adapter that does something."""
    model = attach_lora(load_causal_model(tiny_model, "float32", CPU), SPEC, seed=1)
    random = torch.Generator().manual_seed(2)
    for name, parameter in trainable_parameters(model).items():
        if "lora_B" in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=random))
    return model


def by_rows(model, share_prefix, budget, temperature=1.0, last_tokens=False):
    """Log-probabilities of every row and the gradient of a weighted sum of them."""
    prompts, responses = rows()
    groups = group_rows(prompts, responses, max_tokens=budget, share_prefix=share_prefix)
    found = {}
    model.zero_grad()
    for microbatch in plan_microbatches(groups, budget):
        batch = pack(microbatch, pad_token_id=0, device=CPU, last_tokens=last_tokens)
        logprobs = token_logprobs(model, batch, torch.full((len(batch.rows),), temperature)).logprobs
        weights = torch.tensor([1.0 + row for row in batch.rows])[:, None]
        (logprobs * weights * torch.arange(1, logprobs.shape[1] + 1)).sum().backward()
        found |= {row: line[: len(responses[row])].detach() for row, line in zip(batch.rows, logprobs, strict=True)}
    gradients = {name: p.grad.clone() for name, p in trainable_parameters(model).items()}
    return [found[row] for row in range(len(prompts))], gradients


@pytest.mark.parametrize(("share_prefix", "budget"), [(True, 1000), (True, 14), (False, 1000), (False, 30)])
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("last_tokens", [True, False])
def test_packed_rows_equal_plain_ones(policy, share_prefix, budget, apart, last_tokens, monkeypatch):
    """Against transformers on one row at a time, without mask or positions of ours: values and gradients."""
    monkeypatch.setattr(logprobs_module, "rows_apart", lambda device, dtype: apart)
    prompts, responses = rows()
    packed, gradients = by_rows(policy, share_prefix, budget, temperature=0.7, last_tokens=last_tokens)
    policy.zero_grad()
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids = torch.from_numpy(np.concatenate([prompt, response])).long()[None]
        logits = policy(input_ids=ids).logits[0, len(prompt) - 1 : -1] / 0.7
        expected = logits.log_softmax(-1).gather(1, torch.from_numpy(response).long()[:, None])[:, 0]
        torch.testing.assert_close(packed[row], expected.detach(), atol=2e-5, rtol=1e-5)
        ((1.0 + row) * torch.arange(1, len(response) + 1) * expected).sum().backward()
    for name, parameter in trainable_parameters(policy).items():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=2e-4, rtol=1e-3, msg=name)


def test_entropy_is_that_of_the_distribution(policy):
    prompts, responses = rows(shapes=((5, (3,)),))
    batch = pack(group_rows(prompts, responses, max_tokens=99), pad_token_id=0, device=CPU)
    found = token_logprobs(policy, batch, torch.ones(1)).entropy[0]
    ids = torch.from_numpy(np.concatenate([prompts[0], responses[0]])).long()[None]
    logits = policy(input_ids=ids).logits[0, 4:-1]
    torch.testing.assert_close(found, torch.distributions.Categorical(logits=logits).entropy().detach())


@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), min_size=1, max_size=5)), max_size=8),
    budget=st.integers(1, 60),
    share_prefix=st.booleans(),
)
def test_every_row_is_in_one_microbatch_under_the_budget(shapes, budget, share_prefix):
    prompts, responses = rows(shapes=shapes)
    groups = group_rows(prompts, responses, max_tokens=budget, share_prefix=share_prefix)
    planned = plan_microbatches(groups, budget)
    assert sorted(row for part in planned for group in part for row in group.rows) == list(range(len(prompts)))
    for part in planned:
        assert len(part) == 1 or max(group.length for group in part) * len(part) <= budget
    for group in groups:
        assert len(group.rows) == 1 or group.length <= budget
        for row, response in zip(group.rows, group.responses, strict=True):
            np.testing.assert_array_equal(prompts[row], group.prompt)
            np.testing.assert_array_equal(responses[row], response)


def training_run(model_folder: Path, scratch: Path, *, stop_before: int | None = None, spoil=None, every=1):
    """Four steps on a fresh adapter; `stop_before` breaks off before that step, as a kill would."""
    model = attach_lora(load_causal_model(model_folder, "bfloat16", CPU), SPEC, seed=1)
    prompts, responses = rows()
    steps = [plan_microbatches(group_rows(prompts, responses, max_tokens=30), 30) for _ in range(4)]

    def loss(groups):
        batch = pack(groups, pad_token_id=0, device=CPU)
        noise = 1 + 0.1 * torch.randn(batch.mask.shape)
        logprobs = token_logprobs(model, batch, torch.ones(len(batch.rows))).logprobs
        if spoil == "gradient":
            logprobs.register_hook(lambda gradient: gradient * float("inf"))
        return LossOutputs(-(logprobs * noise).sum() * (float("nan") if spoil == "loss" else 1.0), {})

    def progress(done, total, label):
        if done == stop_before:
            raise InterruptedError

    def save_batch(groups, path):
        path.write_text(json.dumps([group.rows for group in groups]))

    torch.manual_seed(5)
    work = Work(steps, loss, save_batch)
    history = train(trainable_parameters(model), work, OPTIMIZER, Surroundings(scratch, every, progress))
    return {name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()}, history


@pytest.mark.parametrize(("stop_before", "every"), [(1, 1), (3, 1), (3, 2)])
def test_a_killed_update_ends_with_the_same_bits(tiny_model, tmp_path, stop_before, every):
    undisturbed, expected_history = training_run(tiny_model, tmp_path / "undisturbed", every=every)
    with pytest.raises(InterruptedError):
        training_run(tiny_model, tmp_path / "killed", stop_before=stop_before, every=every)
    torch.manual_seed(99)
    resumed, history = training_run(tiny_model, tmp_path / "killed", every=every)
    assert history == expected_history
    for name, expected in undisturbed.items():
        assert torch.equal(resumed[name], expected), name


def test_a_finished_update_is_not_trained_again(tiny_model, tmp_path):
    once, _ = training_run(tiny_model, tmp_path)
    again, _ = training_run(tiny_model, tmp_path)
    assert all(torch.equal(again[name], once[name]) for name in once)


def test_learning_rate_warms_up_and_stays(tiny_model, tmp_path):
    _, history = training_run(tiny_model, tmp_path)
    assert [step["learning_rate"] for step in history] == pytest.approx([0.005, 0.01, 0.01, 0.01])


@pytest.mark.parametrize(("spoil", "what"), [("loss", "loss is nan"), ("gradient", "norm is (nan|inf)")])
def test_a_number_that_is_not_finite_names_the_batch(tiny_model, tmp_path, spoil, what):
    with pytest.raises(StageFailed, match=f"step 0.*{what}.*not_finite.json"):
        training_run(tiny_model, tmp_path, spoil=spoil)
    assert json.loads((tmp_path / "not_finite.json").read_text())


def test_a_fresh_adapter_changes_nothing_and_depends_on_its_seed(tiny_model):
    def first_a(seed):
        model = attach_lora(load_causal_model(tiny_model, "bfloat16", CPU), SPEC, seed=seed)
        parameters = trainable_parameters(model)
        assert not any(p.any() for name, p in parameters.items() if "lora_B" in name)
        assert all(p.dtype == torch.float32 for p in parameters.values())
        targets = {name.split(".")[-4] for name in parameters}
        assert targets == {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}
        return next(iter(parameters.values())).detach()

    assert torch.equal(first_a(1), first_a(1))
    assert not torch.equal(first_a(1), first_a(2))


def test_an_adapter_is_saved_without_the_machine_it_was_trained_on(policy, tiny_model, tmp_path):
    files = save_lora(policy, tmp_path / "a")
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in save_lora(policy, tmp_path / "b")]
    assert str(tiny_model) not in (tmp_path / "a" / "adapter_config.json").read_text()
    loaded = load_lora(load_causal_model(tiny_model, "float32", CPU), tmp_path / "a", trainable=True)
    expected = trainable_parameters(policy)
    assert {name: p.tolist() for name, p in trainable_parameters(loaded).items()} == {
        name: p.tolist() for name, p in expected.items()
    }
    assert set(load_file(files[0])) == {name.replace(".default", "") for name in expected}


def test_bad_models_are_refused_by_name(tiny_model, tmp_path):
    with pytest.raises(InputError, match=r"no \*\.safetensors"):
        load_causal_model(tmp_path, "float32", CPU)
    with pytest.raises(InputError, match=r"no adapter_model\.safetensors"):
        load_lora(load_causal_model(tiny_model, "float32", CPU), tmp_path, trainable=True)
    config = load_causal_model(tiny_model, "float32", CPU).config
    config.final_logit_softcapping = 30.0
    with pytest.raises(InputError, match="final_logit_softcapping is 30"):
        check_plain_head(config)


def test_scores_do_not_depend_on_what_is_scored_beside(tiny_model, tmp_path):
    description = HeadDescription(end_token_id=2, dtype="float32", layers=1, score_mean=(0.5,), score_std=(2.0,))
    model = fresh_scoring_model(tiny_model, SPEC, description, seed=3, device=CPU)
    prompts, responses = rows()
    together = score_rows(model, prompts, responses, tokens_per_microbatch=1000)
    alone = [
        score_rows(model, [p], [r], tokens_per_microbatch=1000)[0] for p, r in zip(prompts, responses, strict=True)
    ]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.ptp(together) > 0.01
    save_scoring_model(model, description, tmp_path)
    ends = [ended(response, 2) for response in responses]
    saved = score(tiny_model, tmp_path, prompts, responses, device="cpu")
    np.testing.assert_allclose(saved.raw, score_rows(model, prompts, ends, tokens_per_microbatch=50), atol=1e-5)
    np.testing.assert_allclose(saved.standardised, (saved.raw - 0.5) / 2)


def test_answers_end_once():
    assert ended(np.array([5, 2]), 2).tolist() == [5, 2]
    assert ended(np.array([5, 6]), 2).tolist() == [5, 6, 2]
    assert ended(np.array([], dtype=np.int32), 2).tolist() == [2]


def test_a_reward_model_without_its_files_or_with_more_layers_than_the_base(tiny_model, tmp_path):
    with pytest.raises(InputError, match=r"no reward_model\.json"):
        score(tiny_model, tmp_path, [[1]], [[2]])
    with pytest.raises(InputError, match="layers: 9"):
        fresh_scoring_model(tiny_model, SPEC, HeadDescription(2, "float32", 9), seed=0, device=CPU)
