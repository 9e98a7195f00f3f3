"""Whole models: gradients equal plain transformers', also recomputed; folders load elsewhere; critics' heads."""

import hashlib
import json
import math
import resource
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from tiny_model import build_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from storage.errors import InputError
from tasks._training import logprobs as logprobs_module
from tasks._training.batching import group_rows, plan_microbatches
from tasks._training.full import save_full
from tasks._training.layers import checkpoint_layers
from tasks._training.logprobs import token_logprobs
from tasks._training.loop import OptimizerSpec
from tasks._training.lora import LoraSpec, attach_lora, load_causal_model, trainable_parameters
from tasks._training.memory import peak_memory
from tasks._training.packing import pack
from tasks._training.value_head import fresh_value_head, load_value_head, save_value_head, token_values

CPU = torch.device("cpu")
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def untied(tiny_model, tmp_path_factory):
    """The tiny model with an output projection of its own."""
    folder = tmp_path_factory.mktemp("untied")
    model = AutoModelForCausalLM.from_pretrained(build_tiny_model(folder, seed=4), dtype=torch.bfloat16)
    model.config.tie_word_embeddings = False
    generator = torch.Generator().manual_seed(1)
    weight = 0.2 * torch.randn(model.lm_head.weight.shape, generator=generator)
    model.lm_head.weight = torch.nn.Parameter(weight.bfloat16())
    model.save_pretrained(folder)
    return folder


def rows():
    random = np.random.default_rng(0)
    prompts, responses = [], []
    for length, lengths in ((5, (3, 1, 7)), (9, (4, 4)), (2, (6,))):
        prompt = random.integers(3, 300, length).astype(np.int32)
        prompts += [prompt] * len(lengths)
        responses += [random.integers(3, 300, size).astype(np.int32) for size in lengths]
    return prompts, responses


def gradients(model):
    """Of a sum of log-probabilities with a weight for each, by the trainer."""
    prompts, responses = rows()
    model.zero_grad()
    for microbatch in plan_microbatches(group_rows(prompts, responses, max_tokens=30), 30):
        batch = pack(microbatch, pad_token_id=0, device=CPU)
        found = token_logprobs(model, batch, torch.full((len(batch.rows),), TEMPERATURE)).logprobs
        (torch.cos(batch.targets.float()) * found).sum().backward()
    return {name: p.grad.clone() for name, p in trainable_parameters(model).items()}


def plain_gradients(folder, dtype=torch.float32, autocast=False):
    """Of the same sum, by transformers on one row at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    for prompt, response in zip(*rows(), strict=True):
        ids = torch.from_numpy(np.concatenate([prompt, response])).long()[None]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].to(dtype) / TEMPERATURE
        targets = torch.from_numpy(response).long()
        found = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        (torch.cos(targets.to(dtype)) * found).sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("chunk", [3, 512])
@pytest.mark.parametrize("tied", [True, False])
def test_all_gradients_equal_those_of_plain_transformers(tiny_model, untied, monkeypatch, tied, chunk):
    monkeypatch.setitem(logprobs_module.TOKENS_AT_ONCE, "cpu", chunk)
    monkeypatch.setattr(logprobs_module, "TOKENS_AT_ONCE_FOR_WEIGHT", chunk)
    folder = tiny_model if tied else untied
    found = gradients(load_causal_model(folder, "float32", CPU, trainable=True))
    expected = plain_gradients(folder, torch.float64)
    assert set(found) == set(expected)
    assert ("lm_head.weight" in found) != tied
    for name, gradient in expected.items():
        assert_near(found[name], gradient, 2e-5, name)


def assert_near(found, expected, relative, name):
    """By the norm of the whole tensor's difference."""
    error = torch.linalg.vector_norm(found.double() - expected.double()) / torch.linalg.vector_norm(expected.double())
    assert error <= relative, f"{name}: {error}"


def test_a_bfloat16_model_computes_in_it_on_float32_masters(tiny_model):
    model = load_causal_model(tiny_model, "bfloat16", CPU, trainable=True)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    found = gradients(model)
    low, exact = plain_gradients(tiny_model, autocast=True), plain_gradients(tiny_model)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    for name, gradient in exact.items():
        rounding = torch.linalg.vector_norm(low[name] - gradient) / torch.linalg.vector_norm(gradient)
        error = torch.linalg.vector_norm(found[name] - gradient) / torch.linalg.vector_norm(gradient)
        assert 1e-4 < error < 2 * rounding + 0.01, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_recomputed_layers_give_the_same_gradients(tiny_model, kind, dtype):
    def by(gradient_checkpointing):
        options = {"trainable": kind == "full", "gradient_checkpointing": gradient_checkpointing}
        model = load_causal_model(tiny_model, dtype, CPU, **options)
        if kind == "full":
            return gradients(model), count_saved(model)
        adapted = attach_lora(model, LoraSpec(4, 8), seed=1)
        generator = torch.Generator().manual_seed(2)
        for name, p in trainable_parameters(adapted).items():
            if "lora_B" in name:
                p.data.copy_(0.1 * torch.randn(p.shape, generator=generator))
        return gradients(adapted), count_saved(adapted)

    (kept, kept_bytes), (recomputed, recomputed_bytes) = by(False), by(True)
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)
    assert any(gradient.any() for gradient in kept.values())
    assert recomputed_bytes < kept_bytes / 2


def count_saved(model):
    """Bytes that the forward pass keeps for the backward pass besides parameters."""
    batch = pack(group_rows(*rows(), max_tokens=99), pad_token_id=0, device=CPU)
    parameters = {p.data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = token_logprobs(model, batch, torch.ones(len(batch.rows)))
    assert found.logprobs.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_a_model_without_layers_is_refused():
    with pytest.raises(InputError, match="Linear marks no layers"):
        checkpoint_layers(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_loads_in_transformers_and_has_equal_bytes(tiny_model, untied, tmp_path, tied, dtype):
    base = tiny_model if tied else untied
    model = load_causal_model(base, dtype, CPU, trainable=True)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1 / 3)
    files = save_full(model, tmp_path / "a")
    assert set(files) == set((tmp_path / "a").iterdir())
    assert hashes(files) == hashes(save_full(model, tmp_path / "b"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert loaded.dtype == getattr(torch, dtype)
    found, expected = loaded.state_dict(), model.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name].to(loaded.dtype)) for name in expected)
    assert set(load_file(files[0])) == set(load_file(base / "model.safetensors"))
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (base, tmp_path / "a")]
    assert (
        len({tuple(t.apply_chat_template([{"role": "user", "content": "sea"}])["input_ids"]) for t in tokenizers}) == 1
    )
    base_config, config = (json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "a"))
    assert config | {"dtype": 0} == base_config | {"dtype": 0}
    again = load_causal_model(tmp_path / "a", dtype, CPU, trainable=True)
    assert again.config.dtype == getattr(torch, dtype)


def hashes(files):
    return {Path(file).name: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("warmup", [0, 3, 20])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_follows_its_schedule(schedule, warmup):
    spec = OptimizerSpec(2e-3, warmup, 1.0, 0.0, schedule)
    total = 10
    for step in range(total):
        if step < warmup:
            expected = 2e-3 * (step + 1) / (warmup + 1)
        else:
            t = (step - warmup) / (total - warmup)
            expected = 2e-3 * {"constant": 1, "linear": 1 - t, "cosine": 0.55 + 0.45 * math.cos(math.pi * t)}[schedule]
        assert spec.rate(step, total) == pytest.approx(expected, rel=1e-12)


def test_hidden_states_are_those_that_predict_the_tokens(tiny_model):
    model = load_causal_model(tiny_model, "float32", CPU)
    prompts, responses = rows()
    batch = pack(group_rows(prompts, responses, max_tokens=99), pad_token_id=0, device=CPU)
    with torch.no_grad():
        found = token_logprobs(model, batch, torch.ones(len(batch.rows))).hidden
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    expected = []
    for row in batch.rows:
        ids = torch.from_numpy(np.concatenate([prompts[row], responses[row]])).long()[None]
        states = plain(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        expected.append(states[len(prompts[row]) - 1 : -1].detach())
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-4, rtol=1e-4)


def test_a_value_head_begins_at_zero_and_comes_back_as_saved(tmp_path):
    hidden = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    head = fresh_value_head(8, CPU)
    assert token_values(head, hidden.bfloat16()).tolist() == [0.0] * 5
    with torch.no_grad():
        head.weight.copy_(torch.arange(8.0))
        head.bias.fill_(0.5)
    save_value_head(head, tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        found = token_values(load_value_head(tmp_path, CPU), hidden.float())
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.detach(), hidden.numpy() @ np.arange(8) + 0.5, rtol=1e-5)
    with pytest.raises(InputError, match=r"no value_head\.safetensors"):
        load_value_head(tmp_path / "other", CPU)


def test_peak_memory_is_what_was_held_and_stays():
    held = np.ones(2**24)
    resident = psutil.Process().memory_info().rss / 2**30
    assert held[-1] == 1
    del held
    found = peak_memory()["peak_memory_gib"]
    slack = 0.01
    assert resident - slack <= found <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 + slack
