"""What the tests of engines share: questions, samples of them, and the log-probabilities of a plain forward."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tasks._engines.chat import load_tokenizer, render
from tasks._engines.config import EngineConfig
from tasks._engines.protocol import Completion, SamplingParams, ServedModel

QUESTIONS = ("What is 12 plus 30?", "Write a haiku about the sea.", "one two three")
CONFIG = EngineConfig(max_model_len=128, kv_cache_gib=1)
SAMPLING = SamplingParams(max_tokens=24)


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
