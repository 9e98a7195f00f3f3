"""The update loop: optimizer steps over micro-batches. It knows no objective by name."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import polars as pl
import torch
from torch import Tensor, nn

from storage.errors import StageFailed
from tasks._maths.metrics import Metric
from tasks._training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

Batch = TypeVar("Batch")


class Loss(Protocol):
    """What a micro-batch contributes: both fields add up over the micro-batches of a step."""

    @property
    def loss_sum(self) -> Tensor: ...

    @property
    def metrics(self) -> dict[str, Metric]: ...


@dataclass(frozen=True)
class OptimizerSpec:
    """AdamW; the learning rate rises linearly over `warmup_steps` and stays."""

    learning_rate: float
    warmup_steps: int
    max_grad_norm: float
    weight_decay: float


@dataclass(frozen=True)
class Work(Generic[Batch]):
    """What to do: the micro-batches of each optimizer step, the loss of one, and how to write one down."""

    steps: Sequence[Sequence[Batch]]
    loss: Callable[[Batch], Loss]
    save_batch: Callable[[Batch, Path], None]


@dataclass(frozen=True)
class Surroundings:
    """Where the loop keeps its checkpoint, how often it writes one, and whom it tells how far it is."""

    scratch: Path
    checkpoint_every_steps: int
    progress: Callable[[int, int, str], None]


StepMetrics = dict[str, float]


def train(
    parameters: dict[str, nn.Parameter], work: Work[Batch], spec: OptimizerSpec, surroundings: Surroundings
) -> list[StepMetrics]:
    """Changes `parameters` in place by one optimizer step per entry of `work.steps`; returns each step's metrics.

    Resumes from the checkpoint in the scratch folder when there is one. Raises `StageFailed` when a loss or a
    gradient isn't finite; the batch that did it lies in the scratch folder then, and the error names it.
    """
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=spec.learning_rate, weight_decay=spec.weight_decay, foreach=False
    )
    path = surroundings.scratch / "checkpoint.safetensors"
    resumed = load_checkpoint(path, parameters, optimizer)
    done, history = (resumed.step, resumed.history) if resumed else (0, [])
    total = len(work.steps)
    for step in range(done, total):
        surroundings.progress(step, total, "optimizer steps")
        rate = spec.learning_rate * min(1.0, (step + 1) / (spec.warmup_steps + 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        metrics = _step(parameters, work, step, optimizer, spec.max_grad_norm, surroundings.scratch)
        history.append(metrics | {"learning_rate": rate})
        if (step + 1) % surroundings.checkpoint_every_steps == 0 or step + 1 == total:
            save_checkpoint(path, parameters, optimizer, Checkpoint(step + 1, history))
    surroundings.progress(total, total, "optimizer steps")
    return history


def _step(
    parameters: dict[str, nn.Parameter],
    work: Work[Batch],
    step: int,
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float,
    scratch: Path,
) -> StepMetrics:
    merged: dict[str, Metric] = {}
    optimizer.zero_grad(set_to_none=True)
    for number, batch in enumerate(work.steps[step]):
        loss = work.loss(batch)
        value = float(loss.loss_sum.detach())
        if not math.isfinite(value):
            raise _not_finite(work, batch, scratch, f"step {step}, micro-batch {number}: the loss is {value}")
        loss.loss_sum.backward()
        _merge(merged, loss.metrics)
    norm = float(torch.nn.utils.clip_grad_norm_(list(parameters.values()), max_grad_norm))
    if not math.isfinite(norm):
        worst = _batch_with_bad_gradient(parameters, work, step)
        raise _not_finite(work, worst, scratch, f"step {step}: the gradient's norm is {norm}")
    optimizer.step()
    return {name: metric.value for name, metric in merged.items()} | {"grad_norm": norm}


def _merge(merged: dict[str, Any], metrics: dict[str, Any]) -> None:
    for name, metric in metrics.items():
        merged[name] = merged[name].merge(metric) if name in merged else metric


def _batch_with_bad_gradient(parameters: dict[str, nn.Parameter], work: Work[Batch], step: int) -> Batch:
    """The first micro-batch whose own gradient isn't finite; the last one when only their sum overflows."""
    batches = work.steps[step]
    for batch in batches:
        for parameter in parameters.values():
            parameter.grad = None
        work.loss(batch).loss_sum.backward()
        if not all(p.grad is None or bool(p.grad.isfinite().all()) for p in parameters.values()):
            return batch
    return batches[-1]


def _not_finite(work: Work[Batch], batch: Batch, scratch: Path, what: str) -> StageFailed:
    path = scratch / "not_finite.json"
    scratch.mkdir(parents=True, exist_ok=True)
    work.save_batch(batch, path)
    return StageFailed(f"{what}; the batch is in {path}. A lower learning_rate or max_grad_norm may help")


def steps_frame(history: list[StepMetrics]) -> pl.DataFrame:
    """The metrics of every step as a `TrainingStep` frame."""
    entries = [(step, name, value) for step, metrics in enumerate(history) for name, value in sorted(metrics.items())]
    schema = {"step": pl.Int32, "metric": pl.String, "value": pl.Float64}
    return pl.DataFrame(entries, schema=schema, orient="row")
