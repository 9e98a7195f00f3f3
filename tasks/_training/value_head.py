"""A critic's head: the value of the state before each response token, from the hidden state that predicts it."""

from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from storage.errors import InputError
from tasks._training.parallel import writes_files

VALUE_HEAD_WEIGHTS = "value_head.safetensors"


def fresh_value_head(hidden_size: int, device: torch.device) -> nn.Linear:
    """A linear head (hidden -> 1) in float32 that says 0 everywhere, so that it begins without an opinion."""
    head = nn.Linear(hidden_size, 1, dtype=torch.float32, device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def token_values(head: nn.Linear, hidden: Float[Tensor, "tokens hidden"]) -> Float[Tensor, " tokens"]:
    """One value per hidden state, in float32; `TokenLogprobs.hidden` are the states of a batch's response tokens."""
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.float()).squeeze(-1)


def save_value_head(head: nn.Linear, folder: Path) -> list[Path]:
    """Writes the head; returns the file. Of several processes the first one writes."""
    path = folder / VALUE_HEAD_WEIGHTS
    if writes_files():
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}, path)
    return [path]


def load_value_head(folder: Path, device: torch.device) -> nn.Linear:
    """What `save_value_head` wrote. Raises `InputError` when it isn't there."""
    path = folder / VALUE_HEAD_WEIGHTS
    if not path.is_file():
        raise InputError(f"{folder}: no {VALUE_HEAD_WEIGHTS}; expected a critic's folder")
    weights = load_file(path)
    head = fresh_value_head(weights["weight"].shape[1], device)
    head.load_state_dict(weights)
    return head
