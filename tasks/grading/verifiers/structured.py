"""Form: JSON, and tags around reasoning and answer."""

import json as syntax
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from storage.errors import InputError
from tasks.grading.verdict import (
    Verdict,
    checked_flags,
    checked_names,
    checked_param,
    read_once,
    with_defaults,
)

FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?```", re.DOTALL)
LONGEST_MESSAGE = 300
TAG_NAME = re.compile(r"[A-Za-z][\w.-]*")


class _Form(NamedTuple):
    """The opening and closing tags in the order in which they have to stand, and what finds them."""

    marks: list[str]
    pattern: re.Pattern[str]
    strict: bool
    partial: bool
    allow_empty: bool


def json(text: str, answer: str | None, params: Mapping[str, Any]) -> Verdict:  # noqa: ARG001 there is no answer
    """1 when the text is JSON (RFC 8259: no NaN) and valid against `schema`, else 0. `detail` says what is wrong where.

    Params: schema (a JSON schema; none: any JSON), fenced (false; true: the text's last ``` block where it has one).
    Raises `InputError` for what is no schema. A schema's references to other addresses are not followed.
    """
    errors_of, fenced = _json_params(params)
    blocks = FENCED.findall(text) if fenced else []
    try:
        value = syntax.loads(blocks[-1] if blocks else text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return Verdict(0.0, passed=False, detail={"invalid": f"{error}"[:LONGEST_MESSAGE]})
    wrong = errors_of(value) if errors_of else None
    return Verdict(float(wrong is None), wrong is None, {} if wrong is None else {"invalid": wrong})


def tagged(text: str, answer: str | None, params: Mapping[str, Any]) -> Verdict:  # noqa: ARG001 there is no answer
    """1 when the tags stand in the text once each and in order, as <think>..</think><answer>..</answer>, else 0.

    Params: tags (["think", "answer"]), strict (true: nothing but blanks before, between and after them), allow_empty
    (false: every tag holds something), partial (false; true: the share of these checks that hold: each opening and
    each closing tag once, their order, nothing outside where strict, nothing empty unless allowed).
    """
    form = _form(params)
    found = [(mark[0], *mark.span()) for mark in form.pattern.finditer(text)]
    names = [name for name, _, _ in found]
    ordered = names == form.marks
    checks = {} if ordered else {mark: names.count(mark) == 1 for mark in form.marks}
    if not ordered:
        places = [names.index(mark) if mark in names else -1 for mark in form.marks]
        checks["order"] = min(places) >= 0 and places == sorted(places)
    pieces = _pieces(text, found) if ordered else []
    if form.strict:
        checks["nothing outside"] = ordered and not any(pieces[::2])
    if not form.allow_empty:
        checks["nothing empty"] = ordered and all(pieces[1::2])
    failed = [name for name, holds in checks.items() if not holds]
    number = len(form.marks) + 1 + form.strict + (not form.allow_empty)
    score = 1 - len(failed) / number if form.partial else float(not failed)
    return Verdict(score, not failed, {"failed": failed} if failed else {})


def _pieces(text: str, found: list[tuple[str, int, int]]) -> list[str]:
    """What stands outside and inside the tags, in turns, without blanks around it."""
    stops, starts = [0, *(end for _, _, end in found)], [*(start for _, start, _ in found), len(text)]
    return [text[stop:start].strip() for stop, start in zip(stops, starts, strict=True)]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


@read_once
def _json_params(params: Mapping[str, Any]) -> tuple[Callable[[Any], str | None] | None, bool]:
    chosen = with_defaults("json", params, {"schema": None, "fenced": False})
    checked_flags("json", chosen, "fenced")
    return None if chosen["schema"] is None else _against(chosen["schema"]), chosen["fenced"]


def _against(schema: Any) -> Callable[[Any], str | None]:
    """A function that says what is wrong with a value, or None."""
    import jsonschema
    import referencing

    try:
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    except (jsonschema.SchemaError, TypeError, AttributeError) as error:
        message = getattr(error, "message", error)
        raise InputError(f"verifier json: params.schema is no JSON schema: {message}") from error
    validator = kind(schema, registry=referencing.Registry())

    def wrong(value: Any) -> str | None:
        try:
            error = next(validator.iter_errors(value), None)
        except referencing.exceptions.Unresolvable as missing:
            raise InputError(f"verifier json: params.schema refers to what isn't in it: {missing}") from missing
        return None if error is None else f"{error.json_path}: {error.message}"[:LONGEST_MESSAGE]

    return wrong


@read_once
def _form(params: Mapping[str, Any]) -> _Form:
    defaults = {"tags": ("think", "answer"), "strict": True, "partial": False, "allow_empty": False}
    chosen = with_defaults("format", params, defaults)
    checked_flags("format", chosen, "strict", "partial", "allow_empty")
    tags = checked_names("format", "tags", chosen["tags"])
    fits = len(set(tags)) == len(tags) and all(map(TAG_NAME.fullmatch, tags))
    checked_param("format", "tags", chosen["tags"], fits, "different names of tags such as [think, answer]")
    marks = [f"<{slash}{tag}>" for tag in tags for slash in ("", "/")]
    pattern = re.compile("|".join(map(re.escape, marks)))
    return _Form(marks, pattern, chosen["strict"], chosen["partial"], chosen["allow_empty"])
