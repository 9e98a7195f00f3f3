"""Procedural sources: a registry by name, or `package.module:object` for one's own."""

import importlib
from collections.abc import Iterator
from typing import Any, Protocol

from storage.errors import InputError
from tasks.curate import haiku
from tasks.curate.rows import Rejection, Row


class Generator(Protocol):
    """Makes prompts. A module with these names is one.

    Its rows have the fields `messages` and, optionally, `answer` and `tags`.
    """

    DOMAIN: str
    VERIFIER: str

    def rows(self, params: dict[str, Any], seed: int) -> Iterator[Row | Rejection]:
        """The prompts, in an order that follows from the parameters and the seed alone."""

    def digests(self, params: dict[str, Any]) -> dict[str, str]:
        """File -> content digest of what the generator reads. Raises `InputError` for wrong parameters."""


GENERATORS: dict[str, Generator] = {"haiku": haiku}


def resolve_generator(name: str) -> Generator:
    """The generator of that name or dotted path. Raises `InputError` when there is none."""
    if name in GENERATORS:
        return GENERATORS[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise InputError(f"no generator {name!r}; there are {', '.join(GENERATORS)}, or give package.module:object")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"generator {name!r} can't be imported: {error}") from error
