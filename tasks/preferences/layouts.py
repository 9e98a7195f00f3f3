"""A row of a file of preferences -> what it says: finished pairs, rated answers or votes. One function a layout."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tasks._sources.fields import UnusableField, checked_turns, normal_text, normalise_text, present, written_text
from tasks._sources.rows import Row
from tasks.preferences.dialogues import Chat, part_chats, turns_of_dialogue
from tasks.preferences.files_config import (
    ClicksSource,
    DialoguesSource,
    EditsSource,
    PairsSource,
    RatedSource,
    ThumbsSource,
)

TRUE = ("true", "1", "yes")


@dataclass(frozen=True)
class Compared:
    """Two answers to one prompt, the better one first unless they tie."""

    row: Row
    messages: Chat
    chosen: str
    rejected: str
    tie: bool = False
    strength: float | None = None
    annotator: str | None = None
    scores: tuple[float | None, float | None] = (None, None)
    policies: tuple[str | None, str | None] = (None, None)
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answered:
    """One answer and what somebody thinks of it: a rating, or a vote (1 for it, 0 against it)."""

    row: Row
    messages: Chat
    text: str
    score: float
    annotator: str | None = None
    policy: str | None = None


Said = list[Compared] | list[Answered]


def compared_dialogues(row: Row, source: DialoguesSource) -> list[Compared]:
    """HH-RLHF: a pair, or none where the two dialogues are the same."""
    chats = [turns_of_dialogue(_text(row, name), name) for name in (source.chosen_field, source.rejected_field)]
    return _compared(row, source, _with_system(_parted(chats, source), source))


def compared_pair(row: Row, source: PairsSource) -> list[Compared]:
    """Two columns, each a text or a chat whose last turn is the answer."""
    names = (source.chosen_field, source.rejected_field)
    values = [_value(row, name) for name in names]
    if all(isinstance(value, list) and len(value) > 1 for value in values):
        chats = [_chat(value, name) for value, name in zip(values, names, strict=True)]
        return _compared(row, source, _with_system(_parted(chats, source), source))
    if source.prompt_field is None:
        expected = "chats of a prompt and an answer, or a prompt_field beside texts"
        raise UnusableField("no_prompt", names[0], values[0], expected)
    first, second = (_answer(value, name) for value, name in zip(values, names, strict=True))
    return _compared(row, source, (_prompt(row, source), first, second))


def rated_answers(row: Row, source: RatedSource) -> list[Answered]:
    """Every answer that has a rating; null, an empty string and N/A are none."""
    messages, found = _prompt(row, source), []
    for answer in _listed(row, source.answers_field):
        inner = Row(row.source, row.row, answer if isinstance(answer, dict) else {})
        if source.text_key not in inner.fields:
            raise UnusableField("bad_type", source.answers_field, answer, f"objects with {source.text_key!r}")
        rating = _number(_looked_up(inner, source.rating_key), source.rating_key)
        if rating is None:
            continue
        policy = _looked_up(inner, source.policy_key) if source.policy_key else None
        text = written_text(inner.fields[source.text_key], source.text_key)
        found.append(Answered(row, messages, text, rating, _annotator(row, source), _name(policy)))
    return found


def thumb(row: Row, source: ThumbsSource) -> list[Answered]:
    """A vote; none where the row has neither."""
    vote = _looked_up(row, source.vote_field)
    said = str(vote).strip().lower()
    if vote is None or said == "":
        return []
    if said not in (up := [each.lower() for each in source.up]) and said not in [each.lower() for each in source.down]:
        raise UnusableField("bad_vote", source.vote_field, vote, f"one of {source.up} or {source.down}")
    policy = _looked_up(row, source.policy_field) if source.policy_field else None
    text = written_text(_value(row, source.answer_field), source.answer_field)
    return [Answered(row, _prompt(row, source), text, float(said in up), _annotator(row, source), _name(policy))]


def clicked(row: Row, source: ClicksSource) -> list[Compared]:
    """Each clicked answer over those that weren't, or over those of them that were shown above it."""
    shown = [_shown_text(each, source) for each in _listed(row, source.answers_field)]
    places = _places(row, source, len(shown))
    messages, annotator = _prompt(row, source), _annotator(row, source) or "click"
    return [
        Compared(row, messages, shown[place], shown[other], strength=_fixed(source), annotator=annotator)
        for place in places
        for other in range(place if source.over == "above" else len(shown))
        if other not in places and shown[other] != shown[place]
    ]


def edited(row: Row, source: EditsSource) -> list[Compared]:
    """What people made of an answer, over it; nothing where they left it as it was."""
    rewritten = _looked_up(row, source.edited_field)
    original = written_text(_value(row, source.answer_field), source.answer_field)
    if rewritten is None or normalise_text(str(rewritten)) in ("", normalise_text(original)):
        return []
    text = written_text(rewritten, source.edited_field)
    policy = _name(_looked_up(row, source.policy_field)) if source.policy_field else None
    annotator = _annotator(row, source) or "edit"
    prompt = _prompt(row, source)
    pair = Compared(row, prompt, text, original, False, _fixed(source), annotator, policies=(None, policy))
    return [pair]


LAYOUTS: dict[str, Callable[[Row, Any], Said]] = {
    "dialogues": compared_dialogues,
    "pairs": compared_pair,
    "rated": rated_answers,
    "thumbs": thumb,
    "clicks": clicked,
    "edits": edited,
}


def _compared(row: Row, source: DialoguesSource | PairsSource, parted: tuple[Chat, str, str]) -> list[Compared]:
    """The pair with all that its row says of it, turned round where the second answer is the better one."""
    messages, first, second = parted
    side = _side(row, source)
    if side == "none" or first == second:
        return []
    turned = side == "second"
    scores = _two(row, (source.chosen_score_field, source.rejected_score_field), _number, turned)
    policies = _two(
        row, (source.chosen_policy_field, source.rejected_policy_field), lambda each, _: _name(each), turned
    )
    chosen, rejected = (second, first) if turned else (first, second)
    strength = _strength(row, source)
    if strength is None and scores[0] is not None and scores[1] is not None:
        strength = abs(scores[0] - scores[1])
    tie = side == "tie" or (source.tie_field is not None and _is_true(_looked_up(row, source.tie_field)))
    return [Compared(row, messages, chosen, rejected, tie, strength, _annotator(row, source), scores, policies)]


def _two(
    row: Row, names: tuple[str | None, str | None], read: Callable[[object, str], Any], turned: bool
) -> tuple[Any, Any]:
    one, other = (None if name is None else read(_looked_up(row, name), name) for name in names)
    return (other, one) if turned else (one, other)


def _side(row: Row, source: DialoguesSource | PairsSource) -> str:
    if source.choice_field is None:
        return "first"
    said = _looked_up(row, source.choice_field)
    side = source.choices.get(str(said))
    if side is None:
        raise UnusableField("bad_choice", source.choice_field, said, f"one of {sorted(source.choices)}")
    return side


def _strength(row: Row, source: DialoguesSource | PairsSource) -> float | None:
    if source.strength_field is None:
        return source.strength
    value = _looked_up(row, source.strength_field)
    if isinstance(value, str) and value in source.strengths:
        return source.strengths[value]
    try:
        return _number(value, source.strength_field)
    except UnusableField:
        expected = f"a number or one of {sorted(source.strengths)}"
        raise UnusableField("bad_strength", source.strength_field, value, expected) from None


def _fixed(source: ClicksSource | EditsSource | ThumbsSource) -> float:
    return 1.0 if source.strength is None else source.strength


def _parted(chats: list[Chat], source: DialoguesSource | PairsSource) -> tuple[Chat, str, str]:
    names = (source.chosen_field, source.rejected_field)
    messages, *answers = part_chats(chats[0], chats[1], source.chosen_field)
    first, second = (written_text(text, name) for text, name in zip(answers, names, strict=True))
    return messages, first, second


def _with_system(parted: tuple[Chat, str, str], source: Any) -> tuple[Chat, str, str]:
    return _system(parted[0], source), parted[1], parted[2]


def _system(messages: Chat, source: Any) -> Chat:
    if source.system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": normalise_text(source.system)}, *messages]


def _prompt(row: Row, source: Any) -> Chat:
    """The prompt in the normal form that curate gives it: a string is one user turn."""
    name = source.prompt_field
    value = _value(row, name)
    if not isinstance(value, list):
        return _system([{"role": "user", "content": normal_text(value, name)}], source)
    messages = _chat(value, name)
    if messages[-1]["role"] != "user":
        raise UnusableField("not_ending_with_user", name, messages[-1], "a chat whose last turn is the user's")
    return _system(messages, source)


def _chat(value: object, name: str) -> Chat:
    return [{"role": turn["role"], "content": turn.get("content")} for turn in checked_turns(value, name)]


def _answer(value: object, name: str) -> str:
    """A text, or the one turn of a chat."""
    if isinstance(value, list):
        [turn] = checked_turns(value, name)[-1:]
        value = turn.get("content")
    return written_text(value, name)


def _shown_text(answer: object, source: ClicksSource) -> str:
    if source.text_key is None:
        return written_text(answer, source.answers_field)
    if not isinstance(answer, dict) or source.text_key not in answer:
        raise UnusableField("bad_type", source.answers_field, answer, f"objects with {source.text_key!r}")
    return written_text(answer[source.text_key], source.text_key)


def _places(row: Row, source: ClicksSource, shown: int) -> list[int]:
    """The places that were clicked; none where nothing was."""
    value = _looked_up(row, source.clicked_field)
    values = value if isinstance(value, list) else [] if value is None or value == "" else [value]
    places = []
    for each in values:
        place = int(each) if isinstance(each, str) and each.strip().lstrip("-").isdigit() else each
        if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < shown:
            raise UnusableField("bad_place", source.clicked_field, each, f"a place from 0 to {shown - 1}")
        places.append(place)
    return list(dict.fromkeys(places))


def _listed(row: Row, name: str) -> list[Any]:
    value = _value(row, name)
    if not isinstance(value, list):
        raise UnusableField("bad_type", name, value, "a list")
    return value


def _annotator(row: Row, source: Any) -> str | None:
    said = _looked_up(row, source.annotator_field) if source.annotator_field else None
    return _name(said) or source.annotator


def _name(value: object) -> str | None:
    return None if value is None or value == "" else str(value)


def _is_true(value: object) -> bool:
    return str(value).strip().lower() in TRUE


def _number(value: object, name: str) -> float | None:
    """A number, or a string of one; None where there is none."""
    if value is None or (isinstance(value, str) and value.strip().upper() in ("", "N/A", "NA")):
        return None
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number is None or number != number or number in (float("inf"), float("-inf")):
        raise UnusableField("bad_type", name, value, "a finite number")
    return number


def _text(row: Row, name: str) -> str:
    value = _value(row, name)
    if not isinstance(value, str):
        raise UnusableField("bad_type", name, value, "a string")
    return value


def _value(row: Row, name: str) -> object:
    """A field, or a path into one. Raises `UnusableField` where there is nothing."""
    return present(row, name) if "." not in name or name in row.fields else _at_path(row, name, missing=True)


def _looked_up(row: Row, name: str) -> object:
    """The same, None where there is nothing."""
    return row.fields.get(name) if "." not in name or name in row.fields else _at_path(row, name, missing=False)


def _at_path(row: Row, name: str, *, missing: bool) -> object:
    value: object = row.fields
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None and missing:
        raise UnusableField("missing_field", name, None, f"a value at {name!r}")
    return value
