"""One thread of one process of this home at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from storage.home import home


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Hold the home's lock of that name; whoever comes second waits, then finds what the first one made.

    Each holder opens the file itself, so the lock parts threads too, and the kernel frees it when a holder dies.
    """
    path = home() / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
