"""The transformers engine: its samples are what it says they are, the same each time, of the policy asked for."""

from pathlib import Path

import pytest
import torch
from engine_samples import SAMPLING, forward_differences, questions, quiet, sample, served
from transformers import AutoModelForCausalLM

from storage.errors import InputError
from tasks._engines.chat import load_tokenizer, render, stop_token_ids
from tasks._engines.config import EngineConfig
from tasks._engines.protocol import SamplingParams
from tasks._engines.transformers_engine import TransformersEngine, processed_logprobs


@pytest.fixture(scope="module")
def in_process(tiny_model: Path) -> TransformersEngine:
    return TransformersEngine(EngineConfig(max_model_len=128, dtype="float32"), served(tiny_model))


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
