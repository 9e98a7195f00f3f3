"""What this machine has for engines, and the environment that gives one engine its part of it."""

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from storage.errors import InputError
from tasks._devices import has_gpu
from tasks._engines.config import EngineConfig


def cores_of(slot: int, slots: int) -> list[int]:
    """The processor cores of one engine among `slots` side by side: a contiguous part of those allowed to us."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    share = max(1, len(allowed) // slots)
    begin = (slot * share) % len(allowed)
    return allowed[begin : begin + share]


def gpus_of(slot: int, slots: int, tensor_parallel: int, gpus: Sequence[str]) -> list[str]:
    """The GPUs of one engine among `slots` side by side. Raises InputError when there are too few for all of them."""
    if slots * tensor_parallel > len(gpus):
        raise InputError(
            f"engine.data_parallel {slots} x engine.tensor_parallel {tensor_parallel} needs {slots * tensor_parallel} "
            f"GPUs, found {len(gpus)} ({', '.join(gpus) or 'none'}); lower one of the two"
        )
    return list(gpus[slot * tensor_parallel : (slot + 1) * tensor_parallel])


def _visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them: CUDA counts those before the first name that it doesn't know."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name.strip() for name in named.split(",")][:count] if named else [str(i) for i in range(count)]


def child_environment(config: EngineConfig, slot: int, slots: int) -> dict[str, str]:
    """Environment variables of an engine's process: offline, quiet, on its own cores or GPUs.

    Raises InputError when there are fewer GPUs than all engines together need.
    """
    root = str(Path(__file__).parents[2])
    environment = dict(os.environ)
    environment |= {
        "PYTHONPATH": os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if environment.pop("PYTHONDONTWRITEBYTECODE", None):
        # Importing vLLM takes 7 s from bytecode and 18 s from source: keep it where vLLM has its own cache.
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        environment["PYTHONPYCACHEPREFIX"] = str(cache / "posttrain" / "bytecode")
    if has_gpu():
        gpus = gpus_of(slot, slots, config.tensor_parallel, _visible_gpus())
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return environment
    return environment | _cpu_environment(config, cores_of(slot, slots))


def _cpu_environment(config: EngineConfig, cores: list[int]) -> dict[str, str]:
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "OMP_NUM_THREADS": str(len(cores)),
        # vLLM compiles one small sampling function at its first request: 18 s with inductor, nothing gained here.
        "TORCHDYNAMO_DISABLE": "1",
    }
    preloaded = [path for path in (os.environ.get("LD_PRELOAD"), _openmp_library()) if path]
    if preloaded:
        environment["LD_PRELOAD"] = ":".join(preloaded)
    return environment


def _openmp_library() -> str | None:
    """PyTorch's own OpenMP: loaded late it keeps a bound process on one core (vLLM issue 27369)."""
    spec = importlib.util.find_spec("torch")
    if not sys.platform.startswith("linux") or spec is None or spec.origin is None:
        return None
    found = sorted((Path(spec.origin).parent / "lib").glob("libgomp*.so*"))
    return str(found[0]) if found else None
