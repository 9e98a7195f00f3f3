"""Fingerprints: what an artifact is made of, hashed. Paths, credentials, retries and parallelism are no part."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

DIGEST_BYTES = 16


def digest(value: Any) -> str:
    """BLAKE2 over the canonical JSON of a value, as 32 hexadecimal digits."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.blake2b(canonical.encode(), digest_size=DIGEST_BYTES).hexdigest()


def text_key(text: str) -> str:
    """How a grade's detail names another answer to the same prompt: 16 hexadecimal digits of its digest."""
    return digest(text)[:16]


def derive_seed(seed: int, *labels: str | int) -> int:
    """A seed for a named purpose: 31 bits, independent of the seeds for other labels."""
    return int(digest([seed, *labels])[:8], 16) & 0x7FFF_FFFF


def hashed_part(config: BaseModel) -> dict[str, Any]:
    """The JSON of a configuration less what enters no fingerprint: `unhashed` fields, `added` ones at their default."""
    content: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, Mapping) and extra.get("fingerprint") is False:
            continue
        value = getattr(config, name)
        if isinstance(extra, Mapping) and extra.get("fingerprint") == "unless default" and value == field.default:
            continue
        content[name] = _hashed_value(value)
    return content


def _hashed_value(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return hashed_part(value)
    if isinstance(value, Mapping):
        return {str(key): _hashed_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hashed_value(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def fingerprint(
    stage: str, version: int, config: dict[str, Any], inputs: Mapping[str, str], seed: int | None, extra: Any = None
) -> str:
    """The name of what a stage makes of these inputs under this configuration.

    `inputs` maps an argument to the id of its artifact; `extra` is what else decides the result, such as the
    content of source files that lie outside the store.
    """
    return digest([stage, version, config, dict(inputs), seed, extra])
