"""One policy update: trajectories in, a changed adapter out."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.numpy import load_file, save_file

from storage.fingerprints import derive_seed
from tasks._maths.metrics import masked_mean
from tasks._maths.objectives import OBJECTIVES, LossInputs, LossOptions, LossOutputs
from tasks._training.batching import PromptGroup, group_rows, microbatch_tokens, plan_microbatches
from tasks._training.logprobs import check_plain_head, token_logprobs
from tasks._training.loop import OptimizerSpec, StepMetrics, Surroundings, Work, steps_frame, train
from tasks._training.lora import (
    LoraSpec,
    attach_lora,
    choose_device,
    load_causal_model,
    load_lora,
    save_lora,
    trainable_parameters,
)
from tasks._training.packing import PackedBatch, pack
from tasks.policy_update.config import PolicyUpdateConfig
from tasks.policy_update.parity import check_parity, recompute_logprobs
from tasks.policy_update.rows import TrainingRows, deal_steps, read_rows

Progress = Callable[[int, int, str], None]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PolicyUpdate:
    """The updated adapter's folder, a `TrainingStep` frame, and the update's metrics."""

    adapter_folder: Path
    steps: pl.DataFrame
    metrics: dict[str, float]


@dataclass(frozen=True)
class Microbatch:
    """Groups that are computed together, and what each row of theirs is divided by, by row number."""

    groups: list[PromptGroup]
    denominators: dict[int, float]


def update_policy(
    trajectories: pl.DataFrame,
    base: Path,
    adapter: Path | None,
    config: PolicyUpdateConfig,
    *,
    seed: int,
    scratch: Path,
    progress: Progress,
) -> PolicyUpdate:
    """Trains the policy's adapter, or a fresh one, on a `Trajectory` frame.

    A killed update called again with the same scratch folder resumes from its checkpoint. Without anything to
    learn (no row, or every advantage zero) the adapter comes back unchanged and `trained_rows` is 0. Raises
    `InputError` when the parity gate fails, `StageFailed` when a loss or gradient isn't finite.
    """
    device = choose_device(config.device)
    model = load_causal_model(base, config.dtype, device)
    check_plain_head(model.config)
    spec = LoraSpec(config.lora.rank, config.lora.alpha, config.lora.targets)
    policy = (
        load_lora(model, adapter, trainable=True)
        if adapter
        else attach_lora(model, spec, seed=derive_seed(seed, "lora"))
    )
    rows = read_rows(trajectories)
    parity = check_parity(policy, rows, config, seed=seed, device=device)
    steps = plan_steps(rows, config, seed=seed, budget=microbatch_tokens(config.tokens_per_microbatch, device.type))
    history: list[StepMetrics] = []
    if steps:
        old = _old_logprobs(policy, rows, config, scratch, device)
        work = Work(steps, _loss_function(policy, rows, old, config, device), _batch_writer(rows))
        optimizer = OptimizerSpec(config.learning_rate, config.warmup_steps, config.max_grad_norm, config.weight_decay)
        surroundings = Surroundings(scratch, config.checkpoint_every_steps, progress)
        history = train(trainable_parameters(policy), work, optimizer, surroundings)
    else:
        log.info("nothing to learn from %d trajectories: the policy stays as it is", len(trajectories))
    save_lora(policy, scratch / "adapter")
    metrics = parity | _summary(history) | {"trained_rows": float(_trained(rows, config).sum())}
    return PolicyUpdate(scratch / "adapter", steps_frame(history), metrics)


def plan_steps(rows: TrainingRows, config: PolicyUpdateConfig, *, seed: int, budget: int) -> list[list[Microbatch]]:
    """The micro-batches, of `budget` tokens at most, of every optimizer step.

    Steps without a row that could teach anything are left out. Rows without advantage aren't computed, but
    they count: the denominators are those of all rows of a step.
    """
    trained = _trained(rows, config)
    objective = OBJECTIVES[config.objective]
    steps = []
    dealt = deal_steps(rows.groups, optimizer_steps=config.optimizer_steps, epochs=config.epochs, seed=seed)
    for members in dealt:
        denominators = objective.denominators(torch.from_numpy(rows.lengths[members]), config.max_tokens)
        by_row = dict(zip(members.tolist(), denominators.tolist(), strict=True))
        used = members[trained[members]].tolist()
        groups = group_rows(
            [rows.prompts[row] for row in used],
            [rows.responses[row] for row in used],
            max_tokens=budget,
            share_prefix=config.share_prefix,
        )
        groups = [PromptGroup(g.prompt, g.responses, [used[index] for index in g.rows]) for g in groups]
        if groups:
            planned = plan_microbatches(groups, budget)
            steps.append([Microbatch(part, {r: by_row[r] for g in part for r in g.rows}) for part in planned])
    return steps


def _trained(rows: TrainingRows, config: PolicyUpdateConfig) -> np.ndarray:
    """Which rows have a gradient: with a KL penalty all that have weight, else those with an advantage."""
    learns = np.ones(len(rows), dtype=bool) if config.kl.coefficient > 0 else rows.advantages != 0
    return learns & (rows.weights > 0)


def _loss_function(
    policy: Any, rows: TrainingRows, old: list[np.ndarray], config: PolicyUpdateConfig, device: torch.device
) -> Callable[[Microbatch], LossOutputs]:
    options = LossOptions(config.clip_low, config.clip_high, config.kl.coefficient, config.kl.estimator)
    objective = OBJECTIVES[config.objective]

    def column(values: Any) -> torch.Tensor:
        return torch.tensor(np.asarray(values), dtype=torch.float32, device=device)

    def loss(microbatch: Microbatch) -> LossOutputs:
        batch = pack(microbatch.groups, pad_token_id=0, device=device)
        temperatures = column(rows.temperatures[batch.rows])
        reference = None
        if config.kl.coefficient > 0:
            with torch.no_grad(), policy.disable_adapter():
                reference = token_logprobs(policy, batch, temperatures).logprobs
        current = token_logprobs(policy, batch, temperatures)
        inputs = LossInputs(
            logprobs=current.logprobs,
            old_logprobs=_padded([old[row] for row in batch.rows], batch).to(device),
            ref_logprobs=reference,
            advantages=column(rows.advantages[batch.rows]),
            weights=column(rows.weights[batch.rows]),
            denominators=column([microbatch.denominators[row] for row in batch.rows]),
            mask=batch.mask.float(),
        )
        outputs = objective.loss(inputs, options)
        return LossOutputs(outputs.loss_sum, outputs.metrics | {"entropy": masked_mean(current.entropy, inputs.mask)})

    return loss


def _padded(lines: list[np.ndarray], batch: PackedBatch) -> torch.Tensor:
    values = np.zeros(batch.mask.shape, dtype=np.float32)
    for line, filled in zip(lines, values, strict=True):
        filled[: len(line)] = line
    return torch.from_numpy(values)


def _old_logprobs(
    policy: Any, rows: TrainingRows, config: PolicyUpdateConfig, scratch: Path, device: torch.device
) -> list[np.ndarray]:
    """pi_old per row. The trainer's are kept in the scratch folder: after a resume the policy isn't the old one."""
    if config.old_logprobs == "engine":
        return rows.old_logprobs
    path = scratch / "old_logprobs.safetensors"
    if not path.is_file():
        found = recompute_logprobs(policy, rows, list(range(len(rows))), config, device)
        scratch.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        save_file({str(row): np.ascontiguousarray(line) for row, line in found.items()}, unfinished)
        unfinished.replace(path)
    kept = load_file(path)
    return [kept[str(row)] for row in range(len(rows))]


def _batch_writer(rows: TrainingRows) -> Callable[[Microbatch, Path], None]:
    def write(microbatch: Microbatch, path: Path) -> None:
        members = [row for group in microbatch.groups for row in group.rows]
        content = [
            {
                "rollout_id": rows.rollout_ids[row],
                "prompt_token_ids": rows.prompts[row].tolist(),
                "token_ids": rows.responses[row].tolist(),
                "logprobs": rows.old_logprobs[row].tolist(),
                "advantage": float(rows.advantages[row]),
                "weight": float(rows.weights[row]),
            }
            for row in members
        ]
        path.write_text(json.dumps(content, indent=1))

    return write


def _summary(history: list[StepMetrics]) -> dict[str, float]:
    """Means over the steps, the largest ratio, and the number of steps."""
    if not history:
        return {"optimizer_steps": 0.0}
    means = {name: float(np.mean([step[name] for step in history])) for name in history[0]}
    totals = {"tokens": sum(step["tokens"] for step in history), "ratio_max": max(s["ratio_max"] for s in history)}
    return means | totals | {"optimizer_steps": float(len(history))}
