"""The update loop: optimizer steps over micro-batches. It knows no objective by name."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import polars as pl
import torch
from torch import Tensor, nn

from storage.errors import StageFailed
from tasks._maths.metrics import Metric
from tasks._training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tasks._training.memory import freed_memory_kept
from tasks._training.parallel import ALONE, World, all_finite, clip_gradients, deal, sum_gradients

Batch = TypeVar("Batch")
Schedule = Literal["constant", "linear", "cosine"]
COSINE_END = 0.1


class Loss(Protocol):
    """What a micro-batch contributes: both fields add up over the micro-batches of a step."""

    @property
    def loss_sum(self) -> Tensor: ...

    @property
    def metrics(self) -> dict[str, Metric]: ...


@dataclass(frozen=True)
class OptimizerSpec:
    """AdamW; the learning rate rises linearly over `warmup_steps`, and then follows the schedule.

    It stays (constant), or falls over the remaining steps: linearly towards 0, or along half a cosine towards a
    tenth (Loshchilov & Hutter, arXiv 1608.03983, equation 5 without restarts). The end would be reached by the step
    after the last one, so that no step is in vain.
    """

    learning_rate: float
    warmup_steps: int
    max_grad_norm: float
    weight_decay: float
    schedule: Schedule = "constant"

    def rate(self, step: int, total: int) -> float:
        """The learning rate of a step, counted from 0, of `total` steps."""
        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        left = max(1, total - self.warmup_steps)
        progress = min(1.0, max(0, step - self.warmup_steps) / left)
        return self.learning_rate * warm * DECAYS[self.schedule](progress)


DECAYS: dict[Schedule, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: COSINE_END + (1 - COSINE_END) * (1 + math.cos(math.pi * progress)) / 2,
}


@dataclass(frozen=True)
class Work(Generic[Batch]):
    """What to do: the micro-batches of each optimizer step, the loss of one, and how to write one down.

    `size` is what a micro-batch costs, in tokens say: several processes share a step by it.
    """

    steps: Sequence[Sequence[Batch]]
    loss: Callable[[Batch], Loss]
    save_batch: Callable[[Batch, Path], None]
    size: Callable[[Batch], float] = lambda _: 1.0


@dataclass(frozen=True)
class Surroundings:
    """Where the loop keeps its checkpoint, how often it writes one, whom it tells how far it is, and who shares it.

    The scratch folder is the same for all processes of `world`. Only the first one tells.
    """

    scratch: Path
    checkpoint_every_steps: int
    progress: Callable[[int, int, str], None]
    world: World = ALONE


StepMetrics = dict[str, float]


@freed_memory_kept()
def train(
    parameters: dict[str, nn.Parameter], work: Work[Batch], spec: OptimizerSpec, surroundings: Surroundings
) -> list[StepMetrics]:
    """Changes `parameters` in place by one optimizer step per entry of `work.steps`; returns each step's metrics.

    Resumes from the checkpoint in the scratch folder when there is one. Raises `StageFailed` when a loss or a
    gradient isn't finite; the batch that did it lies in the scratch folder then, and the error names it. Several
    processes share each step's micro-batches, and return and raise the same.
    """
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=spec.learning_rate, weight_decay=spec.weight_decay, foreach=False
    )
    path = surroundings.scratch / "checkpoint.safetensors"
    progress = surroundings.progress if surroundings.world.rank == 0 else _silent
    resumed = load_checkpoint(path, parameters, optimizer)
    done, history = (resumed.step, resumed.history) if resumed else (0, [])
    total = len(work.steps)
    for step in range(done, total):
        progress(step, total, "optimizer steps")
        rate = spec.rate(step, total)
        for group in optimizer.param_groups:
            group["lr"] = rate
        metrics = _step(parameters, work, step, optimizer, spec.max_grad_norm, surroundings)
        history.append(metrics | {"learning_rate": rate})
        if (step + 1) % surroundings.checkpoint_every_steps == 0 or step + 1 == total:
            save_checkpoint(path, parameters, optimizer, Checkpoint(step + 1, history))
    progress(total, total, "optimizer steps")
    return history


def _silent(done: int, total: int, label: str) -> None:
    del done, total, label


def _step(
    parameters: dict[str, nn.Parameter],
    work: Work[Batch],
    step: int,
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float,
    surroundings: Surroundings,
) -> StepMetrics:
    world = surroundings.world
    optimizer.zero_grad(set_to_none=True)
    merged: dict[str, Metric] = {}
    parts = world.gather(_accumulate(work, step, world))
    failures = [part.failed for part in parts if part.failed is not None]
    if failures:
        number, value = min(failures)
        what = f"step {step}, micro-batch {number}: the loss is {value}"
        raise _not_finite(work, work.steps[step][number], surroundings, what)
    for part in parts:
        _merge(merged, part.metrics)
    sum_gradients(parameters.values(), world)
    norm = clip_gradients(parameters.values(), max_grad_norm, world)
    if not math.isfinite(norm):
        worst = _batch_with_bad_gradient(parameters, work, step, world)
        raise _not_finite(work, worst, surroundings, f"step {step}: the gradient's norm is {norm}")
    optimizer.step()
    return {name: metric.value for name, metric in merged.items()} | {"grad_norm": norm}


@dataclass(frozen=True)
class _Part:
    """What a process found in its part of a step; `failed` is a micro-batch's number and its loss."""

    metrics: dict[str, Metric]
    failed: tuple[int, float] | None


def _accumulate(work: Work[Batch], step: int, world: World) -> _Part:
    """Adds the gradients of this process's micro-batches up. Others wait for it, so it stops early only when alone."""
    merged: dict[str, Metric] = {}
    failed = None
    for turn in deal(work.steps[step], work.size, world):
        loss = work.loss(work.steps[step][turn.number])
        value = float(loss.loss_sum.detach())
        if not math.isfinite(value) and failed is None:
            failed = turn.number, value
            if world.size == 1:
                break
        (loss.loss_sum if turn.counts else loss.loss_sum * 0.0).backward()
        if turn.counts:
            _merge(merged, loss.metrics)
    return _Part(merged, failed)


def _merge(merged: dict[str, Any], metrics: dict[str, Any]) -> None:
    for name, metric in metrics.items():
        merged[name] = merged[name].merge(metric) if name in merged else metric


def _batch_with_bad_gradient(parameters: dict[str, nn.Parameter], work: Work[Batch], step: int, world: World) -> Batch:
    """The first micro-batch whose own gradient isn't finite; the last one when only their sum overflows.

    All processes compute the same micro-batch: what is sharded holds the sum of their gradients.
    """
    batches = work.steps[step]
    for batch in batches:
        for parameter in parameters.values():
            parameter.grad = None
        work.loss(batch).loss_sum.backward()
        if not all_finite(parameters.values(), world):
            return batch
    return batches[-1]


def _not_finite(work: Work[Batch], batch: Batch, surroundings: Surroundings, what: str) -> StageFailed:
    path = surroundings.scratch / "not_finite.json"
    if surroundings.world.rank == 0:
        surroundings.scratch.mkdir(parents=True, exist_ok=True)
        work.save_batch(batch, path)
    surroundings.world.gather(None)  # the first process that ends badly has the others killed: not while one writes
    return StageFailed(f"{what}; the batch is in {path}. A lower learning_rate or max_grad_norm may help")


def steps_frame(history: list[StepMetrics]) -> pl.DataFrame:
    """The metrics of every step as a `TrainingStep` frame."""
    entries = [(step, name, value) for step, metrics in enumerate(history) for name, value in sorted(metrics.items())]
    schema = {"step": pl.Int32, "metric": pl.String, "value": pl.Float64}
    return pl.DataFrame(entries, schema=schema, orient="row")
