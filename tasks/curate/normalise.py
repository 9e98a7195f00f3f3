"""A row becomes a prompt: fields and turns checked, text normalised, identity hashed."""

import json
from typing import Any

from storage.fingerprints import digest
from tasks._sources.fields import UnusableField, checked_turns, normal_text, normalise_text, present
from tasks._sources.rows import Rejection, Row
from tasks.curate.config import SourceConfig
from tasks.curate.generators import resolve_generator


def prompt_of_row(row: Row, source: SourceConfig) -> dict[str, Any] | Rejection:
    """The row as a `storage.records.Prompt` without `split` and `cluster_id`, or why it can't be one."""
    try:
        messages = _messages(row, source)
        answer = _answer(row, source)
        own_params = _own_params(row, source)
        domain = _domain(row, source)
    except UnusableField as wrong:
        return wrong.at(row)
    name, params = _verifier(source, row)
    verifier = {"name": name, "params": json.dumps(params | own_params, sort_keys=True)}
    return {
        "prompt_id": digest([messages, verifier]),
        "messages": messages,
        "answer": answer,
        "verifier": verifier,
        "domain": domain,
        "tags": [*source.tags, *row.fields.get("tags", [])] if source.path is None else source.tags,
        "source": f"{row.source}:{row.row}",
        "rubric": None,
    }


def _messages(row: Row, source: SourceConfig) -> list[dict[str, str]]:
    if source.prompt_field is not None:
        content = normal_text(present(row, source.prompt_field), source.prompt_field)
        messages = [{"role": "user", "content": content}]
    else:
        field = source.messages_field or "messages"
        messages = _chat(present(row, field), field)
    if source.system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": normalise_text(source.system)})
    return messages


def _answer(row: Row, source: SourceConfig) -> str | None:
    if source.path is None:
        return row.fields.get("answer")
    if source.answer_field is None:
        return None
    value = present(row, source.answer_field)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return normal_text(value, source.answer_field)


def _own_params(row: Row, source: SourceConfig) -> dict[str, Any]:
    """The verifier's params that the row itself has, as they are written: code is not normalised."""
    columns = source.verifier.param_fields if source.verifier else {}
    params = {param: present(row, field) for param, field in columns.items()}
    for param, value in params.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise UnusableField("bad_type", columns[param], value, "a value that JSON has") from None
    return params


def _chat(value: object, field: str) -> list[dict[str, str]]:
    messages = [
        {"role": turn["role"], "content": normal_text(turn.get("content"), field)}
        for turn in checked_turns(value, field)
    ]
    roles = [message["role"] for message in messages]
    if "user" not in roles:
        raise UnusableField("no_user_turn", field, roles, "a chat with a user turn")
    if roles[-1] != "user":
        raise UnusableField("not_ending_with_user", field, roles, "a chat whose last turn is the user's")
    return messages


def _domain(row: Row, source: SourceConfig) -> str:
    if source.domain_field is not None:
        return normal_text(present(row, source.domain_field), source.domain_field)
    own = resolve_generator(source.generator).DOMAIN if source.generator else "general"
    return source.domain or own


def _verifier(source: SourceConfig, row: Row) -> tuple[str, dict[str, Any]]:
    if source.verifier is not None:
        return source.verifier.name, source.verifier.params
    assert source.generator is not None
    return resolve_generator(source.generator).VERIFIER, row.fields.get("verifier_params", {})
