"""Engines: what they sample is what they say it is, the same each time, from the policy that was asked for."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_model import build_tiny_model
from transformers import AutoModelForCausalLM

from storage.errors import InputError, TransientError
from tasks._engines.chat import load_tokenizer, render, stop_token_ids
from tasks._engines.config import EngineConfig
from tasks._engines.protocol import Completion, SamplingParams, ServedModel
from tasks._engines.transformers_engine import TransformersEngine, processed_logprobs
from tasks._engines.vllm_engine import VllmEngine

QUESTIONS = ("What is 12 plus 30?", "Write a haiku about the sea.", "one two three")
CONFIG = EngineConfig(max_model_len=128, kv_cache_gib=1)
SAMPLING = SamplingParams(max_tokens=24)
# bf16 keeps 8 bits: two engines that add in another order differ by a few hundredths of a nat.
MEAN_NATS, MAX_NATS = 0.03, 0.25


def served(folder: Path) -> ServedModel:
    return ServedModel(folder, None, "policy", folder)  # one id for all: what is served goes by its folder


def questions(folder: Path) -> list[list[int]]:
    return [render(load_tokenizer(folder), [{"role": "user", "content": text}]) for text in QUESTIONS]


def quiet(done: int, total: int) -> None:
    """Progress that nobody looks at."""


def sample(engine, folder: Path, seed: int = 3, sampling: SamplingParams = SAMPLING) -> list[list[Completion]]:
    return engine.generate(questions(folder), [4, 3, 2], sampling, seed, quiet)


def forward_differences(folder: Path, completions: list[list[Completion]], dtype: torch.dtype) -> torch.Tensor:
    """|engine's log-probability - a plain forward's| of each sampled token, one unpadded row at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    differences = []
    for prompt, drawn in zip(questions(folder), completions, strict=True):
        for one in drawn:
            with torch.inference_mode():
                logits = model(torch.tensor([[*prompt, *one.token_ids]])).logits[0, len(prompt) - 1 : -1]
            ours = logits.float().log_softmax(-1).gather(1, torch.tensor(one.token_ids)[:, None])[:, 0]
            differences.append((ours - torch.tensor(one.logprobs)).abs())
    return torch.cat(differences)


@pytest.fixture(scope="module")
def other_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's architecture with other weights."""
    return build_tiny_model(tmp_path_factory.mktemp("other") / "model", seed=1)


@pytest.fixture(scope="module")
def in_process(tiny_model: Path) -> TransformersEngine:
    return TransformersEngine(EngineConfig(max_model_len=128, dtype="float32"), served(tiny_model))


@pytest.fixture(scope="module")
def vllm(tiny_model: Path) -> Iterator[VllmEngine]:
    engine = VllmEngine(CONFIG, served(tiny_model))
    yield engine
    engine.close()


def test_transformers_gives_the_samples_that_were_asked_for(in_process: TransformersEngine, tiny_model: Path) -> None:
    seen: list[tuple[int, int]] = []
    completions = in_process.generate(
        questions(tiny_model), [4, 0, 2], SAMPLING, 1, lambda done, total: seen.append((done, total))
    )
    assert [len(drawn) for drawn in completions] == [4, 0, 2]
    assert seen[-1] == (6, 6)
    stops = stop_token_ids(tiny_model, load_tokenizer(tiny_model))
    for one in [one for drawn in completions for one in drawn]:
        assert len(one.logprobs) == len(one.token_ids) <= SAMPLING.max_tokens
        assert (one.finish_reason == "stop") == (one.token_ids[-1] in stops)
        assert not set(one.token_ids[:-1]) & set(stops)
        assert "<|im_end|>" not in one.text


def test_transformers_logprobs_are_those_of_an_unpadded_forward(
    in_process: TransformersEngine, tiny_model: Path
) -> None:
    differences = forward_differences(tiny_model, sample(in_process, tiny_model), torch.float32)
    assert differences.max() < 1e-4


def test_transformers_repeats_a_seed_and_not_another(in_process: TransformersEngine, tiny_model: Path) -> None:
    assert sample(in_process, tiny_model) == sample(in_process, tiny_model)
    assert sample(in_process, tiny_model) != sample(in_process, tiny_model, seed=4)


def test_transformers_serves_the_policy_it_was_handed_last(tiny_model: Path, other_model: Path) -> None:
    engine = TransformersEngine(EngineConfig(max_model_len=128, dtype="float32"), served(tiny_model))
    engine.load(served(other_model))
    assert forward_differences(other_model, sample(engine, other_model), torch.float32).max() < 1e-4


def test_samples_follow_the_distribution_that_is_reported(in_process: TransformersEngine, tiny_model: Path) -> None:
    """First tokens of 2,000 samples: their frequencies against exp(logprob), within five standard errors."""
    sampling = SamplingParams(max_tokens=1, temperature=0.7, top_k=5)
    [drawn] = in_process.generate(questions(tiny_model)[:1], [2000], sampling, 5, quiet)
    expected = {one.token_ids[0]: torch.tensor(one.logprobs[0]).exp().item() for one in drawn}
    assert sum(expected.values()) == pytest.approx(1, abs=1e-4)
    for token, probability in expected.items():
        frequency = sum(one.token_ids[0] == token for one in drawn) / 2000
        assert abs(frequency - probability) < 5 * (probability * (1 - probability) / 2000) ** 0.5


def test_greedy_takes_the_likeliest_token(in_process: TransformersEngine, tiny_model: Path) -> None:
    [drawn] = in_process.generate(questions(tiny_model)[:1], [2], SamplingParams(8, temperature=0), 1, quiet)
    assert drawn[0].token_ids == drawn[1].token_ids
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([questions(tiny_model)[0]])).logits[0, -1]
    assert drawn[0].token_ids[0] == logits.argmax()


def test_processed_logprobs_against_hand_computed_values() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    nucleus = processed_logprobs(logits, SamplingParams(1, top_p=0.7)).exp()
    torch.testing.assert_close(nucleus, torch.tensor([[0.625, 0.375, 0.0, 0.0]]))
    two = processed_logprobs(logits, SamplingParams(1, top_k=2)).exp()
    torch.testing.assert_close(two, torch.tensor([[0.625, 0.375, 0.0, 0.0]]))
    sharper = processed_logprobs(logits, SamplingParams(1, temperature=0.5)).exp()
    torch.testing.assert_close(sharper, torch.tensor([[0.25, 0.09, 0.0225, 0.0025]]) / 0.365)


def test_a_prompt_without_room_is_aborted_and_the_others_go_on(
    in_process: TransformersEngine, tiny_model: Path
) -> None:
    prompts = [[5] * 200, [5] * 120, [5] * 127]
    long, short, last = in_process.generate(prompts, [2, 1, 1], SAMPLING, 1, quiet)
    assert [one.finish_reason for one in long] == ["abort", "abort"] and long[0].token_ids == ()
    assert len(short[0].token_ids) <= 8 and len(last[0].token_ids) == 1


def test_messages_need_a_chat_template(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    ids = render(tokenizer, [{"role": "user", "content": "one two"}])
    assert tokenizer.decode(ids) == "<|im_start|>user\none two<|im_end|>\n<|im_start|>assistant\n"
    bare = type(tokenizer).from_pretrained(tiny_model)
    bare.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        render(bare, [{"role": "user", "content": "one"}])
    with pytest.raises(InputError, match=r"tokenizer_config\.json is missing"):
        load_tokenizer(tmp_path)


@pytest.mark.servers
def test_vllm_logprobs_are_the_model_s(vllm: VllmEngine, tiny_model: Path) -> None:
    completions = sample(vllm, tiny_model)
    assert [len(drawn) for drawn in completions] == [4, 3, 2]
    for dtype in (torch.bfloat16, torch.float32):
        differences = forward_differences(tiny_model, completions, dtype)
        assert differences.mean() < MEAN_NATS and differences.max() < MAX_NATS


@pytest.mark.servers
def test_vllm_ends_at_the_end_of_turn_and_reports_progress(vllm: VllmEngine, tiny_model: Path) -> None:
    stops = stop_token_ids(tiny_model, load_tokenizer(tiny_model))
    seen: list[tuple[int, int]] = []
    [drawn] = vllm.generate(
        questions(tiny_model)[:1], [200], SAMPLING, 2, lambda done, total: seen.append((done, total))
    )
    stopped = [one for one in drawn if one.finish_reason == "stop"]
    assert stopped and all(one.token_ids[-1] in stops and "<|im_end|>" not in one.text for one in stopped)
    assert seen[-1] == (200, 200) and len(seen) > 3


@pytest.mark.servers
def test_vllm_s_nucleus_is_the_transformers_engine_s(vllm: VllmEngine, tiny_model: Path) -> None:
    """The same truncated distribution: each token's reported log-probability agrees between the engines."""
    sampling = SamplingParams(max_tokens=1, temperature=0.8, top_p=0.6, top_k=20)
    prompts = questions(tiny_model)[:1]
    ours = TransformersEngine(CONFIG, served(tiny_model))
    [there] = vllm.generate(prompts, [300], sampling, 1, quiet)
    [here] = ours.generate(prompts, [300], sampling, 1, quiet)
    there_by_token = {one.token_ids[0]: one.logprobs[0] for one in there}
    here_by_token = {one.token_ids[0]: one.logprobs[0] for one in here}
    common = there_by_token.keys() & here_by_token.keys()
    assert len(common) >= 3
    for token in common:
        assert there_by_token[token] == pytest.approx(here_by_token[token], abs=0.1)


@pytest.mark.servers
def test_vllm_aborts_a_prompt_without_room(vllm: VllmEngine) -> None:
    long, short = vllm.generate([[5] * 200, [5] * 120], [2, 1], SAMPLING, 1, quiet)
    assert [one.finish_reason for one in long] == ["abort", "abort"]
    assert 1 <= len(short[0].token_ids) <= 8


@pytest.mark.servers
def test_a_job_that_vllm_refuses_leaves_nothing_queued(vllm: VllmEngine, tiny_model: Path) -> None:
    before = sample(vllm, tiny_model)
    with pytest.raises(InputError, match="cannot be empty"):
        vllm.generate([*questions(tiny_model), []], [4, 3, 2, 1], SAMPLING, 5, quiet)
    seen: list[int] = []
    after = vllm.generate(questions(tiny_model), [4, 3, 2], SAMPLING, 3, lambda done, total: seen.append(done))
    assert after == before and seen[-1] == 9


@pytest.mark.servers
def test_vllm_swapped_in_place_or_started_again_after_an_interruption_serves_the_policy_asked_for(
    vllm: VllmEngine, tiny_model: Path, other_model: Path
) -> None:
    first = sample(vllm, tiny_model)
    assert first == sample(vllm, tiny_model)
    assert first != sample(vllm, tiny_model, seed=4)
    child = vllm._child.pid
    vllm.load(served(other_model))
    swapped = sample(vllm, other_model)
    vllm.load(served(tiny_model))
    assert vllm._child.pid == child, "the child was started again instead of swapped"
    assert sample(vllm, tiny_model) == first

    def fail(done: int, total: int) -> None:
        raise RuntimeError("from the callback")

    with pytest.raises(RuntimeError, match="from the callback"):
        vllm.generate(questions(tiny_model), [8, 8, 8], SAMPLING, 1, fail)
    assert not vllm.alive, "a pool would hand it out with the answer still in its pipe"
    vllm.load(served(other_model))
    assert sample(vllm, other_model) == swapped


@pytest.mark.servers
def test_weights_that_vllm_cannot_serve_are_an_input_error(tiny_model: Path, tmp_path: Path) -> None:
    described = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | {"architectures": ["NoSuchModel"]}))
    with pytest.raises(InputError, match="NoSuchModel"):
        VllmEngine(CONFIG, served(tmp_path))


@pytest.mark.servers
def test_a_child_killed_mid_work_is_a_transient_error_with_its_log(tiny_model: Path, vllm: VllmEngine) -> None:
    """Last of the module's: it takes the shared engine's child away, and the pool's rule replaces such an engine."""

    def kill(done: int, total: int) -> None:
        os.kill(vllm._child.pid, signal.SIGKILL)

    with pytest.raises(TransientError, match=r"exit code -9; the end of .*vllm-.*\.log"):
        vllm.generate(questions(tiny_model), [8, 8, 8], SamplingParams(100), 1, kill)
    assert not vllm.alive
