"""A policy's LoRA adapter folded into its base: another one can then be trained on the policy's own weights."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from storage.errors import InputError
from tasks._training.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS

POLICY_PREFIX = "policy_"
KEY = "base_model.model."
DECODER = "model."  # what a decoder is called within its causal model
ODD_FORMS = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern")


def copy_policy(adapter: Path, folder: Path) -> list[Path]:
    """Copies a policy's adapter beside a reward model's own files, which then depend on the base alone."""
    folder.mkdir(parents=True, exist_ok=True)
    names = (ADAPTER_WEIGHTS, ADAPTER_CONFIG)
    return [Path(shutil.copyfile(adapter / name, folder / f"{POLICY_PREFIX}{name}")) for name in names]


def merge_adapter(decoder: PreTrainedModel, folder: Path, prefix: str = "") -> None:
    """W += alpha / r B A (LoRA, arXiv 2106.09685, equation 3) for an adapter whose two files begin with `prefix`.

    `decoder` is the causal model without its output projection, perhaps its first layers only: the adapter's further
    layers are left out. Raises `InputError` where there is no adapter, and for one of another model or of another
    form than plain LoRA.
    """
    weights, config_file = (folder / f"{prefix}{name}" for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG))
    for file in (weights, config_file):
        if not file.is_file():
            raise InputError(f"{folder}: no {file.name}; expected a policy's LoRA adapter")
    config = json.loads(config_file.read_text())
    odd = [name for name in ODD_FORMS if config.get(name)]
    if odd:
        raise InputError(f"{config_file}: {', '.join(odd)} is set; only a plain LoRA adapter can be merged")
    tensors, modules = load_file(weights), dict(decoder.named_modules())
    scale = config["lora_alpha"] / config["r"]
    for name in sorted(key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")):
        module = name.removeprefix(KEY).removeprefix(DECODER)
        if _layer(module) >= decoder.config.num_hidden_layers:
            continue
        if module not in modules:
            raise InputError(f"{weights}: it changes {module}, which the base doesn't have")
        weight = modules[module].weight
        up, down = (tensors[f"{name}.lora_{part}.weight"].to(weight.device).float() for part in "BA")
        with torch.no_grad():
            weight.copy_(weight.float() + scale * (up @ down))


def _layer(module: str) -> int:
    """The number of the layer that a module lies in; -1 outside the layers."""
    parts = module.split(".")
    return int(parts[1]) if parts[0] == "layers" else -1
