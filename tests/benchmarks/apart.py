"""One measurement in a process of its own, and the most memory that such a process has had resident."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def peak_resident_bytes() -> int:
    """Since this process's program was loaded: what getrusage says includes the parent's peak up to the fork."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError("/proc/self/status has no VmHWM: memory is measured on Linux only")
    return int(found[1]) * 1024


def peak_bytes(device: str) -> int:
    """The most that this process has needed where it computes: on a GPU in tensors, else resident."""
    if device == "cpu":
        return peak_resident_bytes()
    import torch

    return torch.cuda.max_memory_allocated()


def run_apart(script: str, *arguments: str, threads: int) -> dict:
    """What a script of this folder prints as JSON, so many threads wide."""
    widths = dict.fromkeys(("POLARS_MAX_THREADS", "OMP_NUM_THREADS"), str(threads))
    environment = os.environ | widths | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, script, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{Path(script).name} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout) if done.stdout.strip() else {}
