"""Checkpoints of a running update: after a kill it goes on where it was and ends with the same bits."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tasks._training.parallel import like, whole, writes_files

RANDOM_STATE = "random_state"


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` optimizer steps; `history` is what the caller reported of them, JSON values."""

    step: int
    history: list[Any]


def save_checkpoint(
    path: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, checkpoint: Checkpoint
) -> None:
    """Writes parameters, optimizer state and random state into one safetensors file, replaced atomically.

    Of several processes every one must call this; the first one writes full tensors and its own random state.
    """
    tensors: dict[str, Tensor] = {RANDOM_STATE: torch.get_rng_state()}
    for name, parameter in parameters.items():
        tensors[f"parameter/{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{key}/{name}"] = value
    plain = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if writes_files():
            plain[name] = full.cpu().contiguous()
    if not writes_files():
        return
    metadata = {"step": str(checkpoint.step), "history": json.dumps(checkpoint.history)}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    save_file(plain, unfinished, metadata=metadata)
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)


def load_checkpoint(
    path: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> Checkpoint | None:
    """Restores what `save_checkpoint` wrote into the parameters and the optimizer; None when there is nothing.

    Each process takes its part of the full tensors: they may be more or fewer than those that wrote them.
    """
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(like(file.get_tensor(f"parameter/{name}"), parameter))
        for key in file.keys():  # noqa: SIM118  (safe_open is no mapping)
            kind, _, rest = key.partition("/")
            if kind == "optimizer":
                state, _, name = rest.partition("/")
                parameter = parameters[name]
                value = file.get_tensor(key)
                optimizer.state[parameter][state] = value if state == "step" else like(value, parameter)
        torch.set_rng_state(file.get_tensor(RANDOM_STATE))
    return Checkpoint(int(metadata["step"]), json.loads(metadata["history"]))
