"""The base of every configuration model: unknown keys are errors, values don't change once validated."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class StrictConfig(BaseModel):
    """A part of a run file. `storage.fingerprints` hashes it, less the fields made by `unhashed`."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def unhashed(default: Any, description: str, **constraints: Any) -> Any:
    """A field that changes how a stage runs but not what it makes: no part of the fingerprint."""
    return Field(default, description=description, json_schema_extra={"fingerprint": False}, **constraints)


def added(default: Any, description: str, **constraints: Any) -> Any:
    """A field that came later and whose default changes nothing: it enters the fingerprint at other values only.

    So what was made before there was such a field is still found.
    """
    return Field(default, description=description, json_schema_extra={"fingerprint": "unless default"}, **constraints)
