"""What a stage lends to graders that need more than a sample."""

from collections.abc import Callable
from dataclasses import dataclass

from storage.errors import InputError
from tasks._engines.config import EngineConfig
from tasks._engines.protocol import ServedModel

ServeModel = Callable[[str, EngineConfig], ServedModel]


def _nothing_served(label: str, _engine: EngineConfig) -> ServedModel:
    raise InputError(f"grader {label}: no local model is at hand here; name an endpoint in its judging")


@dataclass(frozen=True)
class Resources:
    """`served(label, engine)`: the local model of the grader called `label`, resolved when it is asked for."""

    served: ServeModel = _nothing_served
