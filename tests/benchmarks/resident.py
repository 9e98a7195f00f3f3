"""The most memory that this process has had resident."""

import re
from pathlib import Path


def peak_resident_bytes() -> int:
    """Since its program was loaded: what getrusage says includes the parent's peak up to the fork."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError("/proc/self/status has no VmHWM: memory is measured on Linux only")
    return int(found[1]) * 1024
