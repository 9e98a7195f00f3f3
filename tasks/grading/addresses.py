"""Addresses and names in a run file: they reach manifests, hashes and MLflow, so they hold no secret. Light."""

import posixpath
import re
from typing import Any
from urllib.parse import urlsplit

ADDRESS = re.compile(r"https?://", re.IGNORECASE)
# What MLflow takes in the name of a metric.
NAME = re.compile(r"[A-Za-z0-9 _./:-]+")


def check_no_secret(address: str, instead: str) -> None:
    """Raises `ValueError` for an address with credentials, a query or a fragment; `instead` says where they go.

    The address is not repeated: it may hold a secret.
    """
    try:
        parts = urlsplit(address)
    except ValueError:
        raise ValueError("can't be read as an address without credentials; expected http(s)://host:port/path") from None
    if "@" in parts.netloc or "?" in address or "#" in address:
        raise ValueError(f"holds credentials, a query or a fragment; {instead}")


def check_address(address: str, instead: str) -> None:
    """Raises `ValueError` for what is no plain http(s) address."""
    check_no_secret(address, instead)
    parts = urlsplit(address)
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise ValueError("expected http:// or https://, a host and a path, such as http://localhost:8000/v1")


def check_name(name: str | None) -> None:
    """Raises `ValueError` for a name that can't be a part of a metric's."""
    if name is None:
        return
    parts = name.split("/")
    if not NAME.fullmatch(name) or posixpath.normpath(name) != name or "" in parts or ".." in parts or name == ".":
        raise ValueError(
            f"name {name!r} can't be a metric's: expected letters, digits, blanks and _ . / : - , without // or a / at "
            "its ends"
        )


def check_grader_address(grader: str, name: str | None, params: dict[str, Any]) -> None:
    """Raises `ValueError` for a grader whose address holds more than an address, or that has no name beside it."""
    check_name(name)
    if isinstance(params.get("url"), str):
        try:
            check_no_secret(params["url"], "name the key's environment variable in params.key_env instead")
        except ValueError as error:
            raise ValueError(f"params.url {error}") from None
    if not ADDRESS.match(grader):
        return
    try:
        check_address(grader, "name environment variables in params.headers instead, see graders.md")
    except ValueError as error:
        raise ValueError(f"the grader's address {error}") from None
    if name is None:
        raise ValueError("a grader that is an address needs a name, which metrics and grades call it by; set name")
