"""Supervised fine-tuning: demonstrations in, an adapter and its held-out loss before and after out."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from storage.fingerprints import derive_seed
from tasks._devices import choose_device
from tasks._engines.chat import load_tokenizer, stop_token_ids
from tasks._maths.metrics import Metric, Total, masked_mean
from tasks._maths.objectives import LossOutputs
from tasks._sources.rows import rejected_frame
from tasks._training.batching import PromptGroup, microbatch_tokens, plan_microbatches
from tasks._training.logprobs import TokenLogprobs, check_plain_head, token_logprobs
from tasks._training.loop import OptimizerSpec, StepMetrics, Surroundings, Work, steps_frame, train
from tasks._training.lora import (
    LoraSpec,
    attach_lora,
    load_causal_model,
    save_lora,
    trainable_parameters,
)
from tasks._training.memory import freed_memory_kept
from tasks._training.packing import PackedBatch, pack
from tasks.sft.config import SftConfig
from tasks.sft.demonstrations import Demonstration, Tokens, read_demonstrations, split_held_out

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class FineTuned:
    """The adapter's folder, `TrainingStep` and `RejectedRow` frames, and metrics."""

    adapter_folder: Path
    steps: pl.DataFrame
    rejected: pl.DataFrame
    metrics: dict[str, float]


@dataclass(frozen=True)
class Microbatch:
    """Demonstrations that are computed together, and the taught tokens of the whole optimizer step."""

    demonstrations: list[Demonstration]
    tokens_in_step: int


def fine_tune_on_demonstrations(
    base: Path, config: SftConfig, *, seed: int, scratch: Path, progress: Progress
) -> FineTuned:
    """Trains a fresh adapter on the configured demonstrations.

    A killed training called again with the same scratch folder resumes. Raises `InputError` for sources that can't
    be used, `StageFailed` when a loss or gradient isn't finite.
    """
    tokenizer, device = load_tokenizer(base), choose_device(config.device)
    tokens = Tokens(tokenizer, frozenset(stop_token_ids(base, tokenizer)), config.max_tokens)
    demonstrations, rejections = read_demonstrations(config, tokens)
    training, heldout = split_held_out(demonstrations, config.heldout_fraction, derive_seed(seed, "heldout"))
    model = load_causal_model(base, config.dtype, device)
    check_plain_head(model.config)
    spec = LoraSpec(config.lora.rank, config.lora.alpha, config.lora.targets)
    policy = attach_lora(model, spec, seed=derive_seed(seed, "lora"))
    budget = microbatch_tokens(config.tokens_per_microbatch, device.type)
    # A fresh adapter changes nothing, and a checkpoint is loaded only by the loop: this is the base's loss, always.
    before = _heldout_metrics(policy, heldout, budget, device, suffix="_before")
    steps = plan_steps(training, config, seed=seed, budget=budget)
    optimizer = OptimizerSpec(config.learning_rate, config.warmup_steps, config.max_grad_norm, config.weight_decay)
    surroundings = Surroundings(scratch, config.checkpoint_every_steps, progress)
    work = Work(steps, loss_function(policy, device), _write_batch)
    history = train(trainable_parameters(policy), work, optimizer, surroundings)
    save_lora(policy, scratch / "adapter")
    metrics = before | _heldout_metrics(policy, heldout, budget, device) | _summary(history)
    metrics |= {"training_rows": float(len(training)), "heldout_rows": float(len(heldout))}
    metrics |= {"rejected": float(len(rejections))}
    return FineTuned(scratch / "adapter", steps_frame(history), rejected_frame(rejections), metrics)


def plan_steps(
    demonstrations: Sequence[Demonstration], config: SftConfig, *, seed: int, budget: int
) -> list[list[Microbatch]]:
    """Per epoch the shuffled demonstrations, `batch_rows` an optimizer step, in micro-batches of `budget` tokens."""
    steps = []
    for epoch in range(config.epochs):
        order = np.random.default_rng(derive_seed(seed, "order", epoch)).permutation(len(demonstrations))
        for start in range(0, len(order), config.batch_rows):
            members = [demonstrations[index] for index in order[start : start + config.batch_rows]]
            tokens = sum(one.taught_tokens for one in members)
            steps.append([Microbatch(part, tokens) for part in _cut(members, budget)])
    return steps


def pack_demonstrations(demonstrations: Sequence[Demonstration], device: torch.device) -> PackedBatch:
    """One row a demonstration, each token seeing those before it; the mask is true for the taught tokens alone."""
    groups = [PromptGroup(one.token_ids[:1], [one.token_ids[1:]], [row]) for row, one in enumerate(demonstrations)]
    batch = pack(groups, pad_token_id=0, device=device, last_tokens=False)
    taught = np.zeros(tuple(batch.mask.shape), dtype=bool)
    for line, one in zip(taught, demonstrations, strict=True):
        line[: len(one.taught) - 1] = one.taught[1:]
    return replace(batch, mask=batch.mask & torch.from_numpy(taught).to(device))


def negative_log_likelihood(
    logprobs: Float[Tensor, "rows length"], mask: Bool[Tensor, "rows length"], tokens: int
) -> Float[Tensor, ""]:
    """-1/T sum log pi over the taught tokens, T = `tokens` of the whole optimizer batch; natural log."""
    return -logprobs[mask].sum() / tokens


def loss_function(policy: Any, device: torch.device) -> Callable[[Microbatch], LossOutputs]:
    """What one micro-batch adds to its step's loss."""

    def loss(microbatch: Microbatch) -> LossOutputs:
        batch, current = _forward(policy, microbatch.demonstrations, device)
        loss_sum = negative_log_likelihood(current.logprobs, batch.mask, microbatch.tokens_in_step)
        metrics: dict[str, Metric] = {
            "loss": Total(float(loss_sum.detach())),
            "tokens": Total(float(batch.mask.sum())),
            "entropy": masked_mean(current.entropy, batch.mask.float()),
        }
        return LossOutputs(loss_sum, metrics)

    return loss


@freed_memory_kept()
@torch.no_grad()
def heldout_loss(policy: Any, demonstrations: Sequence[Demonstration], budget: int, device: torch.device) -> float:
    """The negative log-likelihood, nats per taught token, over all of the demonstrations."""
    total = 0.0
    for part in _cut(demonstrations, budget):
        batch, current = _forward(policy, part, device)
        total -= float(current.logprobs[batch.mask].double().sum())
    return total / sum(one.taught_tokens for one in demonstrations)


def _forward(
    policy: Any, demonstrations: Sequence[Demonstration], device: torch.device
) -> tuple[PackedBatch, TokenLogprobs]:
    batch = pack_demonstrations(demonstrations, device)
    return batch, token_logprobs(policy, batch, torch.ones(len(demonstrations), device=device))


def _cut(demonstrations: Sequence[Demonstration], budget: int) -> list[list[Demonstration]]:
    """Longest first, in parts whose padded size stays under the budget."""
    groups = [PromptGroup(one.token_ids, [], [row]) for row, one in enumerate(demonstrations)]
    return [[demonstrations[group.rows[0]] for group in part] for part in plan_microbatches(groups, budget)]


def _heldout_metrics(
    policy: Any, heldout: list[Demonstration], budget: int, device: torch.device, suffix: str = ""
) -> dict[str, float]:
    """Nothing where nothing was held out. Perplexity is exp of the loss per token."""
    if not heldout:
        return {}
    loss = heldout_loss(policy, heldout, budget, device)
    return {f"heldout_loss{suffix}": loss, f"heldout_perplexity{suffix}": math.exp(loss)}


def _summary(history: list[StepMetrics]) -> dict[str, float]:
    means = {name: float(np.mean([step[name] for step in history])) for name in ("loss", "entropy", "grad_norm")}
    return means | {"tokens": sum(step["tokens"] for step in history), "optimizer_steps": float(len(history))}


def _write_batch(microbatch: Microbatch, path: Path) -> None:
    content = [
        {"prompt_id": one.prompt_id, "token_ids": one.token_ids.tolist(), "taught": one.taught.tolist()}
        for one in microbatch.demonstrations
    ]
    path.write_text(json.dumps(content, indent=1))
