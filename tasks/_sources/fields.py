"""The fields of a row: what text and chats have to be, and text in its normal form."""

import re
import unicodedata
from typing import Any

from tasks._sources.rows import Rejection, Row, excerpt

ROLES = ("system", "user", "assistant")
LINE_ENDS = re.compile(r"[^\S\n]+$", re.MULTILINE)
EMPTY_LINES = re.compile(r"\n{3,}")


class UnusableField(Exception):
    """What is wrong with one field of one row."""

    def __init__(self, reason: str, field: str, found: object, expected: str) -> None:
        super().__init__(reason)
        self.reason, self.field, self.found, self.expected = reason, field, excerpt(found), expected

    def at(self, row: Row) -> Rejection:
        """That row, set aside for this."""
        return Rejection(row.source, row.row, self.reason, self.field, self.found, self.expected)


def normalise_text(text: str) -> str:
    """NFC, Unix line ends, no blanks around the text or at line ends, at most one empty line in a row.

    Blanks inside a line stay: in code they mean something.
    """
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    return EMPTY_LINES.sub("\n\n", LINE_ENDS.sub("", text)).strip()


def present(row: Row, field: str) -> object:
    """A field's value. Raises `UnusableField` where there is none."""
    value = row.fields.get(field)
    if value is None:
        found = "null" if field in row.fields else f"fields {sorted(map(str, row.fields))}"
        raise UnusableField("missing_field", field, found, f"a value for {field!r}")
    return value


def written_text(value: object, field: str) -> str:
    """A text as it was written. Raises `UnusableField` for anything else, and for blanks alone."""
    if not isinstance(value, str):
        raise UnusableField("bad_type", field, value, "a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UnusableField("not_utf8", field, value, "text without lone surrogates") from None
    if not normalise_text(value):
        raise UnusableField("empty", field, value, "text")
    return value


def normal_text(value: object, field: str) -> str:
    """A text in its normal form. Raises `UnusableField` for anything else, and for blanks alone."""
    return normalise_text(written_text(value, field))


def checked_turns(value: object, field: str) -> list[dict[str, Any]]:
    """A chat's turns, at least one, each with a known role. Raises `UnusableField`."""
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise UnusableField("bad_type", field, value, "a list of {role, content}")
    if not value:
        raise UnusableField("empty", field, value, "at least one turn")
    for turn in value:
        if turn.get("role") not in ROLES:
            raise UnusableField("bad_role", field, turn.get("role"), f"one of {', '.join(ROLES)}")
    return value
