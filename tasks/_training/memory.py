"""How much memory this process has needed, and how it gets it."""

import ctypes
import platform
import re
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# glibc's malloc.h: the size from which a block is mapped by itself, and how much may lie free at the top.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAPPED_FROM, KEPT_FREE = 32 * 2**20, 2**31 - 1
# What glibc's own adjustment comes to after blocks as large have been freed. Setting a threshold turns that off for
# good, and from the initial 128 KiB on every array would be mapped anew each time.
TRIMMED_FROM = 2 * MAPPED_FROM
_lock = threading.Lock()
_inside: list[None] = []


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within, memory that tensors free on a CPU stays with the process for the next ones (glibc only).

    Otherwise it goes back to the system at the end of a micro-batch, and the next one pays for fresh pages: a twentieth
    of an update's time, a seventh of a forward pass's. When the outermost ends all of it is given back.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    with _lock:
        libc.mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_FREE)
        _inside.append(None)
    try:
        yield
    finally:
        with _lock:
            _inside.pop()
            if not _inside:
                libc.mallopt(M_TRIM_THRESHOLD, TRIMMED_FROM)
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
