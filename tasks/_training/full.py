"""Whole models saved as a folder that transformers and vLLM load."""

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from tasks._training.parallel import whole, writes_files

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
COPIED = {".json", ".txt", ".model", ".jinja", ".tiktoken"}


def save_full(model: PreTrainedModel, folder: Path) -> list[Path]:
    """Writes the weights as they are held, the configuration, and the base folder's tokenizer files; returns them.

    Float32 masters stay float32: rounded to the bfloat16 that engines cast them to, half of an update's small steps
    would be lost before the next one. Equal weights have equal bytes: the configuration is the base folder's, with
    the dtype that the model computes in.
    Tied weights are written once. Of several processes every one must call this; the first one writes.
    """
    base = Path(str(model.config.name_or_path))
    weights = _weights(model)
    copied = sorted(path for path in base.iterdir() if path.suffix in COPIED and _is_copied(path.name))
    files = [folder / WEIGHTS, folder / CONFIG, *(folder / path.name for path in copied)]
    if not writes_files():
        return files
    folder.mkdir(parents=True, exist_ok=True)
    weights = revert_weight_conversion(model, weights)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, files[0], metadata={"format": "pt"})
    config = json.loads((base / CONFIG).read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = str(model.config.dtype).removeprefix("torch.")
    files[1].write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for path in copied:
        shutil.copyfile(path, folder / path.name)
    return files


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Full tensors on the CPU by name, on the process that writes; on the others nothing. One at a time is whole."""
    names = dict(model.named_parameters())
    tied = set(dict(model.named_parameters(remove_duplicate=False))) - set(names)
    weights = {}
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        full = whole(tensor.detach())
        if writes_files():
            weights[name] = full.cpu()
    return weights


def _is_copied(name: str) -> bool:
    return name != CONFIG and not name.endswith(".index.json")
