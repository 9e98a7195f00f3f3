"""Training in several processes that `torchrun` started, or in one.

What lies where:
- Full weights (`shard`): FSDP2. Every transformer layer is a unit, and embedding, final norm and output projection
  together are another: parameters, gradients and optimizer state are cut along their first axis, 1 / size of each
  on every rank. A unit is whole only while it computes. Buffers are replicated.
- LoRA adapters and value heads: replicated, with their optimizer state, and so is the frozen base below an adapter.
  FSDP2 wants one precision a unit, which a bfloat16 base with a float32 adapter isn't, and the adapter is small.

Gradients are summed over ranks and not averaged: losses are divided by the denominators of the whole step already.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from tasks._training.launch import LAUNCHER_PID, die_with_parent
from tasks._training.layers import transformer_layers
from tasks._training.logprobs import SHARDED_FORWARD, response_logprobs

Batch = TypeVar("Batch")
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class World:
    """This process among those that train together: `rank` of `size`."""

    rank: int = 0
    size: int = 1

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in their order. Values are pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


ALONE = World()


@dataclass(frozen=True)
class Turn:
    """A rank's next micro-batch, by its number in the step; one that `counts` not only keeps up with other ranks."""

    number: int
    counts: bool


def join_world(device: torch.device) -> tuple[World, torch.device]:
    """The world that `torchrun` started this process in, or `ALONE`; and this process's own device.

    Processes talk over gloo on a CPU and over NCCL on GPUs, where each has the GPU of its local rank. A process that
    `run_in_processes` started dies with its launcher from here on.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ALONE, device
    if LAUNCHER_PID in os.environ:
        die_with_parent(int(os.environ[LAUNCHER_PID]))
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(dist.get_rank(), dist.get_world_size()), device


def leave_world() -> None:
    """Waits for the other processes and ends the conversation; nothing when alone."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def writes_files() -> bool:
    """Whether this process is the one that writes what all processes have."""
    return not dist.is_initialized() or dist.get_rank() == 0


def shard(model: Model, world: World, device: torch.device) -> Model:
    """The model on the device; its parameters sharded when there are several processes.

    Load the model on the CPU then: unit by unit it goes to the device. All parameters must be trainable or all
    frozen (a reference policy). Ask for the parameters after this, not before.
    """
    if world.size == 1:
        return model.to(device)
    mesh = init_device_mesh(device.type, (world.size,))
    for layer in transformer_layers(model):
        fully_shard(layer, mesh=mesh)
    # Resharded after the forward pass as well: parameters look the same whether or not a backward pass follows.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo can't multiply while it sums
    if getattr(model, "get_output_embeddings", lambda: None)() is not None:
        setattr(model, SHARDED_FORWARD, MethodType(response_logprobs, model))
        register_fsdp_forward_method(model, SHARDED_FORWARD)
    return model


def deal(batches: Sequence[Batch], size: Callable[[Batch], float], world: World) -> list[Turn]:
    """This rank's turns at the micro-batches of a step; every rank has as many, every micro-batch counts once.

    Alone they stay in order. Else they are dealt by falling size, to and fro: what is computed at the same time is
    of like size, and the sums are too. Who has one too few takes the smallest once more, without counting it.
    """
    if world.size == 1:
        return [Turn(number, counts=True) for number in range(len(batches))]
    order = sorted(range(len(batches)), key=lambda number: (-size(batches[number]), number))
    turns = []
    for start in range(0, len(order), world.size):
        backwards = (start // world.size) % 2 == 1
        place = start + (world.size - 1 - world.rank if backwards else world.rank)
        turns.append(Turn(order[min(place, len(order) - 1)], counts=place < len(order)))
    return turns


def sum_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Replicated parameters get the sum of all ranks' gradients; FSDP has summed the sharded ones already."""
    replicated = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    if world.size == 1 or not replicated:
        return
    used = torch.tensor([float(p.grad is not None) for p in replicated], device=replicated[0].device)
    dist.all_reduce(used, dist.ReduceOp.MAX)
    reached = [parameter for parameter, flag in zip(replicated, used.tolist(), strict=True) if flag]
    if not reached:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in reached]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for parameter, summed in zip(reached, flat.split([p.numel() for p in reached]), strict=True):
        parameter.grad = summed.view_as(parameter)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, world: World) -> float:
    """Scales all gradients down to a Euclidean norm of `max_norm` over the whole model; returns the norm before."""
    parameters = list(parameters)
    if world.size == 1:
        return float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    squares = {True: 0.0, False: 0.0}
    for gradient in gradients:
        squares[isinstance(gradient, DTensor)] += float(torch.linalg.vector_norm(_local(gradient))) ** 2
    norm = math.sqrt(sum(world.gather(squares[True])) + squares[False])
    if math.isfinite(norm):
        for gradient in gradients:
            _local(gradient).mul_(min(1.0, max_norm / (norm + 1e-6)))
    return norm


def all_finite(parameters: Iterable[nn.Parameter], world: World) -> bool:
    """Whether every gradient on every rank is finite."""
    finite = all(p.grad is None or bool(_local(p.grad).isfinite().all()) for p in parameters)
    return all(world.gather(finite))


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one, the tensor itself otherwise. Every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A full tensor placed, and sharded, as a parameter of its shape is. Every rank has the full tensor."""
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        return distribute_tensor(tensor.to(parameter.device), mesh, parameter.placements, src_data_rank=None)
    return tensor.to(parameter.device)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
