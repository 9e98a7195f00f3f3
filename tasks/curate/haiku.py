"""Prompts that ask for a haiku about a topic; the topics are lines of a text file."""

from collections.abc import Iterator
from typing import Any

from storage.errors import InputError
from tasks._sources.files import file_digest, locate, store_errors
from tasks._sources.rows import Rejection, Row, excerpt

DOMAIN = "haiku"
VERIFIER = "haiku"
VERSION = "1"
PATHS: tuple[str, ...] = ("topics",)
TEMPLATE = "Write a haiku about {topic}. Reply with three lines only: 5, 7 and 5 syllables."
SYSTEM = "You write haiku."
KNOWN_PARAMS = ("topics", "limit")


def rows(params: dict[str, Any], seed: int) -> Iterator[Row | Rejection]:  # noqa: ARG001 the file's order is kept
    """One prompt per line of `params['topics']` (blank lines and # comments left out), at most `params['limit']`."""
    path, limit = _checked(params)
    with store_errors(path):
        filesystem, inner = locate(path)
        lines = filesystem.cat_file(inner).splitlines()
    made = 0
    for number, line in enumerate(lines, start=1):
        if limit is not None and made >= limit:
            return
        if not line.strip() or line.startswith(b"#"):
            continue
        made += 1
        yield _row(path, number, line)


def digests(params: dict[str, Any]) -> dict[str, str]:
    """The digest of the topics file. Raises `InputError` when it is missing or a parameter is wrong."""
    path, _ = _checked(params)
    with store_errors(path):
        filesystem, inner = locate(path)
    return {path: file_digest(filesystem, inner, path)}


def _row(path: str, number: int, line: bytes) -> Row | Rejection:
    try:
        topic = line.decode("utf-8").strip()
    except UnicodeDecodeError:
        return Rejection(path, number, "not_utf8", found=excerpt(line), expected="UTF-8")
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": TEMPLATE.format(topic=topic)},
    ]
    return Row(path, number, {"messages": messages})


def _checked(params: dict[str, Any]) -> tuple[str, int | None]:
    unknown = sorted(set(params) - set(KNOWN_PARAMS))
    if unknown:
        raise InputError(f"generator haiku: unknown params {unknown}; there are {list(KNOWN_PARAMS)}")
    path, limit = params.get("topics"), params.get("limit")
    if not isinstance(path, str):
        raise InputError(f"generator haiku: params.topics is {path!r}; expected the path of a text file of topics")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"generator haiku: params.limit is {limit!r}; expected a whole number from 1, or nothing")
    return path, limit
