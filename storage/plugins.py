"""What a run file names by a dotted path: one's own verifier, grader, generator or engine."""

import importlib
import sys
from pathlib import Path
from typing import Any

from storage.errors import InputError


def import_named(kind: str, path: str) -> Any:
    """The object at `package.module:attribute`; modules of the current folder are found too, after all others.

    Raises `InputError` when it can't be imported, whatever its module raises.
    """
    module, _, attribute = path.partition(":")
    here = str(Path.cwd())
    if not {here, ""} & set(sys.path):
        sys.path.append(here)
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the boundary at which somebody else's module runs
        what = str(error) if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{kind} {path!r} can't be imported: {what}; install it or name another") from error
