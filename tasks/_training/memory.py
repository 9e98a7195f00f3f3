"""How much memory this process has needed."""

import re
import resource
import sys
from pathlib import Path

import torch


def peak_memory() -> dict[str, float]:
    """Metrics in GiB: `peak_memory_gib`, resident, since the process began; `peak_gpu_memory_gib` where CUDA was used.

    The second is the most that tensors took up at once on this process's GPU.
    """
    found = {"peak_memory_gib": _peak_resident_bytes() / 2**30}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def _peak_resident_bytes() -> int:
    """By /proc where there is one: what getrusage says there includes the parent's peak up to the fork."""
    status = Path("/proc/self/status")
    match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    if match:
        return int(match[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
