"""A full disk, told from whatever error it shows up as: the system's, SQLite's, or a server's that couldn't write."""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from storage.errors import InputError

NEEDED_BYTES = 64 * 2**20
"""What a run needs at least to begin: two databases, scratch, logs."""
FULL_BYTES = 2**20
FULL_PHRASES = ("disk is full", "No space left")
"""SQLite's words and the system's, as they come through libraries that raise errors of their own."""


def check_room(folder: Path) -> None:
    """Raise `InputError` when the disk below `folder` has no room to begin a run."""
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        raise InputError(
            f"{folder}: {free / 2**20:.1f} MiB free, a run needs {NEEDED_BYTES // 2**20} MiB to begin. Free some "
            "(`posttrain gc` removes what no manifest names), or set POSTTRAIN_HOME to another disk"
        )


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error comes from a full disk: it says so, or the disk below `folder` is full now."""
    return any(_says_full(cause) for cause in _causes(error)) or shutil.disk_usage(folder).free < FULL_BYTES


def _says_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(phrase in str(error) for phrase in FULL_PHRASES)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
