"""A row becomes a prompt: text normalised, fields and turns checked, identity hashed."""

import json
import re
import unicodedata
from typing import Any

from storage.fingerprints import digest
from tasks.curate.config import SourceConfig
from tasks.curate.generators import resolve_generator
from tasks.curate.rows import Rejection, Row, excerpt

ROLES = ("system", "user", "assistant")
LINE_ENDS = re.compile(r"[^\S\n]+$", re.MULTILINE)
EMPTY_LINES = re.compile(r"\n{3,}")


class UnusableField(Exception):
    """What is wrong with one field of one row."""

    def __init__(self, reason: str, field: str, found: object, expected: str) -> None:
        super().__init__(reason)
        self.reason, self.field, self.found, self.expected = reason, field, excerpt(found), expected


def normalise_text(text: str) -> str:
    """NFC, Unix line ends, no blanks around the text or at line ends, at most one empty line in a row.

    Blanks inside a line stay: in code they mean something.
    """
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    return EMPTY_LINES.sub("\n\n", LINE_ENDS.sub("", text)).strip()


def prompt_of_row(row: Row, source: SourceConfig) -> dict[str, Any] | Rejection:
    """The row as a `storage.records.Prompt` without `split` and `cluster_id`, or why it can't be one."""
    try:
        messages = _messages(row, source)
        answer = _answer(row, source)
    except UnusableField as wrong:
        return Rejection(row.source, row.row, wrong.reason, wrong.field, wrong.found, wrong.expected)
    name, params, domain = _verifier_and_domain(source)
    verifier = {"name": name, "params": json.dumps(params, sort_keys=True)}
    return {
        "prompt_id": digest([messages, verifier]),
        "messages": messages,
        "answer": answer,
        "verifier": verifier,
        "domain": domain,
        "tags": [*source.tags, *row.fields.get("tags", [])] if source.generator else source.tags,
        "source": f"{row.source}:{row.row}",
        "rubric": None,
    }


def _messages(row: Row, source: SourceConfig) -> list[dict[str, str]]:
    if source.prompt_field is not None:
        content = _text(_present(row, source.prompt_field), source.prompt_field)
        messages = [{"role": "user", "content": content}]
    else:
        field = source.messages_field or "messages"
        messages = _chat(_present(row, field), field)
    if source.system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": normalise_text(source.system)})
    return messages


def _answer(row: Row, source: SourceConfig) -> str | None:
    if source.generator is not None:
        return row.fields.get("answer")
    if source.answer_field is None:
        return None
    value = _present(row, source.answer_field)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return _text(value, source.answer_field)


def _present(row: Row, field: str) -> object:
    value = row.fields.get(field)
    if value is None:
        found = "null" if field in row.fields else f"fields {sorted(map(str, row.fields))}"
        raise UnusableField("missing_field", field, found, f"a value for {field!r}")
    return value


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise UnusableField("bad_type", field, value, "a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UnusableField("not_utf8", field, value, "text without lone surrogates") from None
    text = normalise_text(value)
    if not text:
        raise UnusableField("empty", field, value, "text")
    return text


def _chat(value: object, field: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise UnusableField("bad_type", field, value, "a list of {role, content}")
    if not value:
        raise UnusableField("empty", field, value, "at least one turn")
    for turn in value:
        if turn.get("role") not in ROLES:
            raise UnusableField("bad_role", field, turn.get("role"), f"one of {', '.join(ROLES)}")
    messages = [{"role": turn["role"], "content": _text(turn.get("content"), field)} for turn in value]
    roles = [message["role"] for message in messages]
    if "user" not in roles:
        raise UnusableField("no_user_turn", field, roles, "a chat with a user turn")
    if roles[-1] != "user":
        raise UnusableField("not_ending_with_user", field, roles, "a chat whose last turn is the user's")
    return messages


def _verifier_and_domain(source: SourceConfig) -> tuple[str, dict[str, Any], str]:
    if source.generator is None:
        assert source.verifier is not None
        return source.verifier.name, source.verifier.params, source.domain or "general"
    generator = resolve_generator(source.generator)
    domain = source.domain or generator.DOMAIN
    if source.verifier is not None:
        return source.verifier.name, source.verifier.params, domain
    return generator.VERIFIER, {}, domain
