"""How much memory this process has needed, and how it gets it."""

import ctypes
import platform
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# glibc's malloc.h: the size from which memory is mapped anew each time, and how much may lie free at the top. The
# first may be 32 MiB at most; what is mapped by default is what has 128 KiB.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAPPED_FROM, KEPT_FREE = 32 * 2**20, 2**31 - 1
DEFAULT_THRESHOLD = 128 * 2**10
_keepers: list[None] = []


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within, memory that tensors free on a CPU stays with the process for the next ones (glibc only).

    By default large blocks go back to the system when they are freed, and every micro-batch pays for fresh pages: a
    twentieth of an update's time, up to half of a forward pass's. When the outermost ends all of it is given back.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)
    libc.mallopt(M_TRIM_THRESHOLD, KEPT_FREE)
    _keepers.append(None)
    try:
        yield
    finally:
        _keepers.pop()
        if not _keepers:
            libc.mallopt(M_MMAP_THRESHOLD, DEFAULT_THRESHOLD)
            libc.mallopt(M_TRIM_THRESHOLD, DEFAULT_THRESHOLD)
            libc.malloc_trim(0)


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
