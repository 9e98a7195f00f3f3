"""Models that train: whole, or a frozen base with a LoRA adapter in float32, loaded from and saved as safetensors."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from storage.errors import InputError
from tasks._devices import choose_dtype
from tasks._training.attention import PACKED
from tasks._training.layers import checkpoint_layers
from tasks._training.lora_linear import fuse_lora
from tasks._training.parallel import writes_files

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class LoraSpec:
    """A fresh adapter's form. `targets` names modules, or is "all-linear": every linear layer but the output's."""

    rank: int
    alpha: int
    targets: str | tuple[str, ...] = "all-linear"


def load_causal_model(
    folder: Path, dtype: str, device: torch.device, *, trainable: bool = False, gradient_checkpointing: bool = False
) -> PreTrainedModel:
    """A causal language model from a folder with safetensors: frozen, or trainable in full.

    A frozen one holds its weights in `dtype`. A trainable one holds float32 master weights and computes in `dtype`
    (`hidden_states` and `token_logprobs` see to it). With `gradient_checkpointing` a layer keeps its input only,
    and is computed again in the backward pass: Chen et al. (arXiv 1604.06174).
    """
    model = _load(AutoModelForCausalLM, folder, dtype, device, trainable=trainable)
    if gradient_checkpointing:
        checkpoint_layers(model)
    return model


def load_headless_model(
    folder: Path,
    dtype: str,
    device: torch.device,
    *,
    layers: int | None = None,
    trainable: bool = False,
    gradient_checkpointing: bool = False,
) -> PreTrainedModel:
    """The same model without its output projection: the hidden states of its first `layers` layers, or of all."""
    model = _load(AutoModel, folder, dtype, device, layers=layers, trainable=trainable)
    if gradient_checkpointing:
        checkpoint_layers(model)
    return model


def attach_lora(model: PreTrainedModel, spec: LoraSpec, *, seed: int) -> PeftModel:
    """The model with a fresh adapter: A is random by `seed`, B is zero, so nothing has changed yet."""
    targets = spec.targets if isinstance(spec.targets, str) else list(spec.targets)
    config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, lora_dropout=0.0, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = get_peft_model(model, config)
    fuse_lora(policy)
    return policy


def load_lora(model: PreTrainedModel, folder: Path, *, trainable: bool) -> PeftModel:
    """The model with an adapter that `save_lora` wrote."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"{folder}: no {ADAPTER_WEIGHTS}; expected a LoRA adapter in PEFT's format")
    policy = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    fuse_lora(policy)
    return policy


def save_lora(model: PeftModel, folder: Path) -> list[Path]:
    """Writes the adapter in PEFT's format, which vLLM reads too; returns the files.

    Not by `save_pretrained`, which writes the base model's path and an unordered set into the configuration:
    equal adapters have equal bytes here. Of several processes the first one writes: adapters are replicated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / ADAPTER_WEIGHTS, folder / ADAPTER_CONFIG]
    if not writes_files():
        return files
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in get_peft_model_state_dict(model).items()}
    save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict() | {"base_model_name_or_path": "", "inference_mode": True}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True, default=_plain) + "\n")
    return files


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that an optimizer may change, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _load(
    factory: Any, folder: Path, dtype: str, device: torch.device, *, layers: int | None = None, trainable: bool
) -> PreTrainedModel:
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: no *.safetensors; expected a model folder with weights")
    config = AutoConfig.from_pretrained(folder)
    config.use_cache = False
    if layers is not None:
        if not 1 <= layers <= config.num_hidden_layers:
            raise InputError(f"layers: {layers}; the model in {folder} has 1 to {config.num_hidden_layers}")
        config.num_hidden_layers = layers
    computed = DTYPES[choose_dtype(dtype, device.type)]
    with _only_errors():
        held = torch.float32 if trainable else computed
        model = factory.from_pretrained(folder, config=config, dtype=held, attn_implementation=PACKED)
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.config.dtype = computed  # what it computes in and is saved as; the weights say what is held
    model.requires_grad_(trainable)
    return model.to(device).eval()


@contextmanager
def _only_errors() -> Iterator[None]:
    """No progress bar of transformers, and no table of the weights that a shorter model leaves unused."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _plain(value: Any) -> Any:
    """Sets as sorted lists, enumerations by their value."""
    return sorted(value) if isinstance(value, set | frozenset) else getattr(value, "value", str(value))
