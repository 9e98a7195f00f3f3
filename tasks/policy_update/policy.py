"""The policy that trains: a base with an adapter, or every weight; with a value head where there is a critic."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from storage.errors import InputError
from storage.fingerprints import derive_seed
from tasks._devices import choose_dtype
from tasks._training.full import save_full
from tasks._training.logprobs import check_plain_head
from tasks._training.lora import LoraSpec, attach_lora, load_causal_model, load_lora, save_lora, trainable_parameters
from tasks._training.parallel import World, shard, writes_files
from tasks._training.value_head import VALUE_HEAD_WEIGHTS, fresh_value_head, load_value_head, save_value_head
from tasks.policy_update.config import PolicyUpdateConfig

FULL, ADAPTER = "full", "adapter"


@dataclass(frozen=True)
class PolicyFolders:
    """Where a policy lies: its base model, and what training made of it: an adapter, full weights, or nothing yet."""

    base: Path
    trained: Path | None = None
    parameters: str = ADAPTER


@dataclass(frozen=True)
class TrainedPolicy:
    """The model in memory. `head` is None without a critic."""

    model: Any
    head: nn.Linear | None

    def trainable(self) -> dict[str, nn.Parameter]:
        """What the optimizer changes, by name."""
        head = self.head.named_parameters(prefix="value_head") if self.head else ()
        return trainable_parameters(self.model) | dict(head)


@dataclass(frozen=True)
class Place:
    """Where this process computes, and with whom."""

    device: torch.device
    world: World


def load_frozen(folders: PolicyFolders, config: PolicyUpdateConfig, place: Place) -> Any:
    """A policy that is only asked, such as the reference."""
    if folders.trained is not None and folders.parameters == FULL:
        return load_causal_model(folders.trained, config.dtype, place.device)
    model = load_causal_model(folders.base, config.dtype, place.device)
    return load_lora(model, folders.trained, trainable=False) if folders.trained else model


def load_policy(folders: PolicyFolders, config: PolicyUpdateConfig, place: Place, *, seed: int) -> TrainedPolicy:
    """The policy, ready to train. Raises `InputError` when it was trained in another form than `config` asks for."""
    load = _load_full if config.parameters == FULL else _load_adapter
    model = load(folders, config, place, seed)
    check_plain_head(model.config)
    if config.credit != "gae":
        return TrainedPolicy(model, None)
    if folders.trained and (folders.trained / VALUE_HEAD_WEIGHTS).is_file():
        return TrainedPolicy(model, load_value_head(folders.trained, place.device))
    return TrainedPolicy(model, fresh_value_head(model.config.hidden_size, place.device))


def save_policy(policy: TrainedPolicy, folders: PolicyFolders, config: PolicyUpdateConfig, target: Path) -> None:
    """Writes adapter or weights, and the value head; a head that this update doesn't train is handed on."""
    if config.parameters == FULL:
        save_full(policy.model, target)
    else:
        save_lora(policy.model, target)
    if policy.head is not None:
        save_value_head(policy.head, target)
    elif folders.trained and (folders.trained / VALUE_HEAD_WEIGHTS).is_file() and writes_files():
        shutil.copyfile(folders.trained / VALUE_HEAD_WEIGHTS, target / VALUE_HEAD_WEIGHTS)


def _load_adapter(folders: PolicyFolders, config: PolicyUpdateConfig, place: Place, seed: int) -> Any:
    if folders.trained is not None and folders.parameters == FULL:
        raise InputError(
            f"{folders.trained}: the policy has full weights; policy_update.parameters is lora. Go on with full, or "
            "begin a campaign with these weights as model.path"
        )
    recompute = config.gradient_checkpointing
    model = load_causal_model(folders.base, config.dtype, place.device, gradient_checkpointing=recompute)
    if folders.trained is not None:
        return load_lora(model, folders.trained, trainable=True)
    spec = LoraSpec(config.lora.rank, config.lora.alpha, config.lora.targets)
    return attach_lora(model, spec, seed=derive_seed(seed, "lora"))


def _load_full(folders: PolicyFolders, config: PolicyUpdateConfig, place: Place, seed: int) -> Any:  # noqa: ARG001
    """Every weight in float32, sharded over the processes; an adapter that the policy has is merged in first."""
    first = place.device if place.world.size == 1 else torch.device("cpu")
    adapted = folders.trained if folders.parameters == ADAPTER else None
    model = load_causal_model(
        (None if adapted else folders.trained) or folders.base,
        choose_dtype(config.dtype, place.device.type),
        first,
        trainable=True,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    if adapted is not None:
        model = load_lora(model, adapted, trainable=False).merge_and_unload().requires_grad_(True)
    return shard(model, place.world, place.device)
