"""Procedural sources: a registry by name, or `package.module:object` for one's own."""

from collections.abc import Iterator
from typing import Any, Protocol

from storage.errors import InputError
from storage.plugins import import_named
from tasks._sources.rows import Rejection, Row
from tasks.curate import haiku, reasoning, template


class Generator(Protocol):
    """Makes prompts. A module with these names is one.

    Its rows have the fields `messages` and, optionally, `answer`, `tags` and `verifier_params`, what the verifier
    needs to know of this prompt. `VERIFIER` is empty where only the source can name one. `VERSION` is raised when
    the same parameters and files should give other rows. `PATHS` names the parameters that are paths, or mappings
    to paths: their files' digests stand for them in the fingerprint.
    """

    DOMAIN: str
    VERIFIER: str
    VERSION: str
    PATHS: tuple[str, ...]

    def rows(self, params: dict[str, Any], seed: int) -> Iterator[Row | Rejection]:
        """The prompts, in an order that follows from the parameters and the seed alone."""

    def digests(self, params: dict[str, Any]) -> dict[str, str]:
        """File -> content digest of what the generator reads, in an order that the parameters decide.

        Raises `InputError` for wrong parameters.
        """


GENERATORS: dict[str, Generator] = {"haiku": haiku, "reasoning_gym": reasoning, "template": template}
REQUIRED = ("DOMAIN", "VERIFIER", "VERSION", "PATHS", "rows", "digests")


def resolve_generator(name: str) -> Generator:
    """The generator of that name or dotted path. Raises `InputError` when there is none or it lacks a part."""
    if name in GENERATORS:
        return GENERATORS[name]
    if ":" not in name:
        raise InputError(f"no generator {name!r}; there are {', '.join(GENERATORS)}, or give package.module:object")
    found = import_named("generator", name)
    missing = [part for part in REQUIRED if not hasattr(found, part)]
    if missing:
        raise InputError(f"generator {name!r} has no {', '.join(missing)}; a generator has {', '.join(REQUIRED)}")
    if not isinstance(found.PATHS, tuple):
        raise InputError(f"generator {name!r}: PATHS is {found.PATHS!r}; expected a tuple of names of parameters")
    return found
