"""What a run file names by a dotted path: one's own verifier, generator or engine."""

import importlib
from typing import Any

from storage.errors import InputError


def import_named(kind: str, path: str) -> Any:
    """The object at `package.module:attribute`. Raises `InputError` when it can't be imported."""
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{kind} {path!r} can't be imported: {error}; install it or name another") from error
