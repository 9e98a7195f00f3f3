"""Models on this machine's disk: a base in one format, LoRA adapters merged into it, and digests of both.

Safetensors only: nothing here unpickles weights. torch, transformers and peft are imported where they are needed.
"""

import hashlib
import importlib.util
import json
import logging
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from storage.errors import InputError
from storage.home import home
from storage.locks import alone

if TYPE_CHECKING:
    from torch import Tensor

LOG = logging.getLogger(__name__)
PACKAGE_PREFIX = "package:"
MERGED_KEPT = 4
DIGEST_BYTES = 16
CHUNK_BYTES = 1 << 22
NOT_WEIGHTS = (".json", ".jinja", ".txt", ".model")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# What these files say of who wrote them and of defaults that nothing here reads: it changes with transformers' version.
INCIDENTAL = {
    "config.json": ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache"),
    "tokenizer_config.json": ("transformers_version", "name_or_path", "is_local", "local_files_only", "backend"),
}
PEFT_PREFIX = "base_model.model."
SOURCES = "a folder of Hugging Face safetensors, a .gguf file, or package:NAME for a package that carries one"


class _LowRank(NamedTuple):
    """A LoRA update: scale B A, with B `up` (out, rank) and A `down` (rank, in)."""

    up: "Tensor"
    down: "Tensor"
    scale: float


class PolicyFiles(NamedTuple):
    """A policy on disk: its base's folder, what it has of its own, and its id.

    Its own is either a LoRA adapter's folder, or `full`, a folder of full weights of the base's architecture; a base
    model has neither. The tokenizer is the base's always.
    """

    base: Path
    adapter: Path | None
    policy_id: str
    full: Path | None = None

    @property
    def weights(self) -> Path:
        """The folder of the full weights that the adapter, if there is one, comes on top of."""
        return self.full or self.base


def find_base(source: str) -> Path:
    """Where a base model lies: a checked folder of safetensors, or a GGUF file that isn't converted yet.

    Raises InputError when there is no such model, and for weights that only unpickling could read.
    """
    found = _package_gguf(source.removeprefix(PACKAGE_PREFIX)) if source.startswith(PACKAGE_PREFIX) else Path(source)
    if not found.exists():
        raise InputError(f"base model {source}: nothing is there; expected {SOURCES}")
    if found.is_dir():
        return _checked_folder(found.absolute())
    if found.suffix != ".gguf":
        raise InputError(f"base model {source}: not a model file; expected {SOURCES}")
    return found


def convert_base(source: str) -> Path:
    """The folder of a base model as safetensors with its tokenizer: `source` itself, or a GGUF file converted once.

    Raises what `find_base` raises.
    """
    found = find_base(source)
    if found.is_dir():
        return found
    folder = home() / "models" / f"{found.stem}-{_file_digest(found)[:12]}"
    with alone("converted-models"):
        if not folder.is_dir():
            LOG.info("Converting %s to safetensors, once; this takes about half a minute", found.name)
            with _whole(folder) as scratch:
                _convert_gguf(found, scratch)
    return folder


def weights_digest(folder: Path) -> str:
    """BLAKE2 over a model folder's configuration, tokenizer and safetensors, as 32 hexadecimal digits.

    Keys that only tell which transformers wrote them are left out: the same GGUF converted by a later version is the
    same model. A file that keeps its size and modification time is hashed once a machine.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", *NOT_WEIGHTS))
    return _digest([[path.name, _content(path)] for path in files])


def merged_folder(policy: PolicyFiles, dtype: str) -> Path:
    """A folder of full weights that any engine serves: the policy's own, or base and adapter merged once, in `dtype`.

    W + scale B A (Hu et al. 2021, equation 3) is computed in float32 and then cast: added in bfloat16, most of a small
    update would be rounded away. Named by the content of both, so that a policy whose adapter was made again gets
    another. Keeps the newest four. Raises InputError for an adapter that isn't plain LoRA.
    """
    if policy.adapter is None:
        return policy.weights
    content = [
        weights_digest(policy.weights),
        [_file_digest(_part(policy.adapter, name)) for name in ADAPTER_FILES],
        dtype,
    ]
    folder = home() / "models" / "merged" / _digest(content)
    with alone("merged-models"):
        if folder.is_dir():
            os.utime(folder)
            return folder
        updates = _lora_updates(policy.adapter)
        with _whole(folder) as scratch:
            _merge(policy.weights, updates, scratch, dtype)
            if updates:
                raise InputError(
                    f"{policy.adapter}: the adapter changes {sorted(updates)[0]} and {len(updates) - 1} more weights "
                    f"that {policy.weights} doesn't have; it was trained on another base"
                )
        _drop_old_merges(folder)
    return folder


def _package_gguf(package: str) -> Path:
    module = package.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None:
        raise InputError(f"base model package:{package}: the package isn't installed; try pip install {package}")
    places = [Path(place) for place in spec.submodule_search_locations or []]
    found = sorted(path for place in places for path in place.rglob("*.gguf"))
    if len(found) != 1:
        raise InputError(f"base model package:{package}: expected one .gguf file in the package, found {len(found)}")
    return found[0]


def _checked_folder(folder: Path) -> Path:
    if not any(folder.glob("*.safetensors")):
        ggufs = sorted(folder.glob("*.gguf"))
        if ggufs:
            raise InputError(f"base model {folder}: holds GGUF files; name one of them, such as {ggufs[0]}")
        if any(path.suffix in (".bin", ".pt", ".pth") for path in folder.iterdir()):
            raise InputError(
                f"base model {folder}: only pickled weights (.bin, .pt), which may run code when they are loaded; "
                "convert them to safetensors (save_pretrained does) and name that folder"
            )
        raise InputError(f"base model {folder}: no weights there; expected {SOURCES}")
    for name, purpose in (("config.json", "architecture"), ("tokenizer_config.json", "tokenizer")):
        if not (folder / name).is_file():
            raise InputError(f"base model {folder}: {name} is missing, which describes the model's {purpose}")
    return folder


def _convert_gguf(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where, name = str(gguf.parent), gguf.name
    # Without dequantize the model keeps a GGUF quantizer, and save_pretrained refuses it.
    model = AutoModelForCausalLM.from_pretrained(
        where, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(where, gguf_file=name).save_pretrained(folder)


def _lora_updates(adapter: Path) -> dict[str, _LowRank]:
    """The update of each weight, by the base's name of the weight."""
    from safetensors.torch import load_file

    config = json.loads((adapter / "adapter_config.json").read_text())
    for option in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out", "lora_bias"):
        if config.get(option):
            raise InputError(f"{adapter}: {option}={config[option]} isn't plain LoRA and can't be merged here")
    if config.get("peft_type") != "LORA":
        raise InputError(f"{adapter}: a {config.get('peft_type')} adapter; only LORA can be merged")
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    updates: dict[str, _LowRank] = {}
    for name in [name for name in tensors if name.endswith(".lora_A.weight")]:
        down, up = tensors.pop(name), tensors.pop(name.replace(".lora_A.", ".lora_B."))
        target = name.removeprefix(PEFT_PREFIX).replace(".lora_A.weight", ".weight")
        updates[target] = _LowRank(up, down, scale)
    if tensors or not updates:
        raise InputError(f"{adapter}: expected pairs of lora_A and lora_B weights, found also {sorted(tensors)[:3]}")
    return updates


def _merge(base: Path, updates: dict[str, _LowRank], folder: Path, dtype: str) -> None:
    """Write the base's files with each update added, in `dtype`; an update that was used is taken out of `updates`."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    for shard in sorted(base.glob("*.safetensors")):
        merged = {}
        with safe_open(shard, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - safe_open isn't a mapping
                weight = weights.get_tensor(name)
                if name in updates:
                    update = updates.pop(name)
                    weight = weight.float() + update.scale * (update.up.float() @ update.down.float())
                merged[name] = weight.to(getattr(torch, dtype)) if weight.is_floating_point() else weight
        save_file(merged, folder / shard.name, metadata={"format": "pt"})
    for path in base.iterdir():
        if path.suffix in NOT_WEIGHTS:
            shutil.copyfile(path, folder / path.name)
    config = json.loads((base / "config.json").read_text())
    config.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(config | {"dtype": dtype}, indent=2))


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A scratch folder that becomes `folder` when the block ends well. For the holder of a lock."""
    scratch = folder.with_name(f".{folder.name}")
    shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
    scratch.mkdir(parents=True)
    try:
        yield scratch
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _drop_old_merges(newest: Path) -> None:
    merges = [path for path in newest.parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
    merges.sort(key=lambda path: (path == newest, path.stat().st_mtime), reverse=True)
    for old in merges[MERGED_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def _part(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise InputError(f"{folder}: {name} is missing; expected a LoRA adapter in PEFT's format")
    return folder / name


def _content(path: Path) -> Any:
    """What a model's file says: its digest, or its JSON less what is incidental."""
    if path.name == "generation_config.json":  # the rest are defaults of transformers' own generate
        return _json(path).get("eos_token_id")
    if path.name in INCIDENTAL:
        return {key: value for key, value in _json(path).items() if key not in INCIDENTAL[path.name]}
    return _file_digest(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise InputError(f"{path}: not a JSON object: {error}") from error


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=DIGEST_BYTES).hexdigest()


def _file_digest(path: Path) -> str:
    """BLAKE2 of a file's bytes, remembered for as long as its size and modification time stay."""
    status = path.stat()
    key = f"{path.absolute()}:{status.st_size}:{status.st_mtime_ns}"
    known = _known_digests()
    if key in known:
        return known[key]
    hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with path.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            hasher.update(chunk)
    with alone("digests"):
        ledger = _ledger()
        scratch = ledger.with_name(f".digests-{uuid.uuid4().hex}.json")
        scratch.write_text(json.dumps(_known_digests() | {key: hasher.hexdigest()}, indent=0))
        scratch.replace(ledger)
    return hasher.hexdigest()


def _ledger() -> Path:
    folder = home() / "models"
    folder.mkdir(exist_ok=True)
    return folder / "digests.json"


def _known_digests() -> dict[str, str]:
    return dict(json.loads(_ledger().read_text())) if _ledger().is_file() else {}
