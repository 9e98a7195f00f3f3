"""Patterns that no prompt may hold: the lists that come along, opt-in, and files of one's own.

They are crude on purpose: a pattern finds what looks like something. What it drops is named in `rejected`.
"""

from typing import Any

import regex

from storage.errors import InputError
from tasks._sources.files import file_digest, locate, store_errors
from tasks.curate.filters_config import SafetyFilter

PRESETS: dict[str, dict[str, str]] = {
    "personal_data": {
        "email_address": r"(?i)\b[a-z0-9._%+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}\b",
        "payment_card": r"\b(?:4\d{3}|5[1-5]\d{2}|6011)[ -]?\d{4}[ -]?\d{4}[ -]?\d{4}\b",
        "us_social_security_number": r"\b(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b",
        "iban": r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b",
    },
    "secrets": {
        "private_key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
        "cloud_access_key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
        "bearer_token": r"\b(?:ghp|gho|ghs|github_pat|sk|xox[abp])[-_][A-Za-z0-9_-]{20,}\b",
        "password_assignment": r"(?i)\b(?:password|passwd|api[_-]?key|secret)\b\s*[:=]\s*[\"'][^\"'\s]{8,}[\"']",
    },
    "injection": {
        "ignore_instructions": r"(?i)\b(?:ignore|disregard|forget)\b[^.\n]{0,40}"
        r"\b(?:previous|prior|above|earlier|system)\b[^.\n]{0,30}\b(?:instructions?|prompts?|rules|messages?)\b",
        "reveal_system_prompt": r"(?i)\b(?:reveal|print|repeat|show|output)\b[^.\n]{0,40}\bsystem (?:prompt|message)\b",
        "chat_markup": r"<\|(?:im_start|im_end|system|user|assistant|endoftext|eot_id|start_header_id)\|>",
    },
}


def compiled(config: SafetyFilter) -> dict[str, Any]:
    """Every pattern by its name: `preset.name`, or one's own name. Raises `InputError` for a file that has none."""
    named = {f"{preset}.{name}": text for preset in config.presets for name, text in PRESETS[preset].items()}
    named |= config.patterns
    found = {name: regex.compile(text) for name, text in named.items()}
    return found | (_of_file(config.file) if config.file else {})


def patterns_digest(config: SafetyFilter) -> str | None:
    """The content of the file of patterns, for the fingerprint; None without one."""
    if config.file is None:
        return None
    with store_errors(config.file):
        filesystem, inner = locate(config.file)
    return file_digest(filesystem, inner, config.file)


def _of_file(path: str) -> dict[str, Any]:
    with store_errors(path):
        filesystem, inner = locate(path)
        content = filesystem.cat_file(inner)
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    found = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, pattern = (part.strip() for part in line.partition(":"))
        if not (name and colon and pattern):
            raise InputError(f"{path}:{number}: found {line!r}, expected name: regular expression")
        try:
            found[name] = regex.compile(pattern)
        except regex.error as error:
            raise InputError(f"{path}:{number}: {pattern!r} is no regular expression: {error}") from error
    if not found:
        raise InputError(f"{path}: holds no pattern; expected one a line, name: regular expression")
    return found
