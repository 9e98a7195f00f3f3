"""Label Studio's JSON, pairwise template: a queue with its labels as tasks, and annotations back as labels.

Task format: https://labelstud.io/guide/task_format; the tag's value is `{"selected": "left"}` (tag Pairwise). The
template has no tie: it is a choice beside it. `deployments/labelling.md` holds the labelling configuration.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import polars as pl
from pydantic import ValidationError

from storage.errors import InputError
from storage.labels import Label, QueueLabels
from tasks.label_queue.choose import item_id_of

PAIRWISE, TIE, COMMENT, SCORES = "pw", "tie", "comment", ("score1", "score2")
SIDES = {"left": "first", "right": "second"}
SELECTED = {choice: side for side, choice in SIDES.items()}
ANSWERS = ("text1", "text2")
FIELDS = {"first_score": SCORES[0], "second_score": SCORES[1], "seconds": "lead_time", "annotator": "completed_by"}


class Annotation(NamedTuple):
    """One annotation of a file: what to store (its id is given then), where it stood, and of which label it tells."""

    where: str
    label: Label
    exported: frozenset[str] = frozenset()


def tasks_of(queue: pl.DataFrame, labels: Sequence[Label]) -> list[dict[str, Any]]:
    """A task per item of the queue, its labels as annotations. `text1` is the item's first answer."""
    given: dict[str, list[Label]] = {}
    for label in labels:
        given.setdefault(label.item_id, []).append(label)
    return [
        {
            "id": row["position"] + 1,
            "data": {
                "item_id": row["item_id"],
                "prompt": "\n\n".join(f"{each['role']}: {each['content']}" for each in row["messages"]),
                "messages": row["messages"],
                "text1": row["first"],
                "text2": row["second"],
                "reason": row["reason"],
            },
            "annotations": [_annotation(label) for label in given.get(row["item_id"], [])],
        }
        for row in queue.iter_rows(named=True)
    ]


def annotations_of(content: str, where: str, max_score: int) -> list[Annotation]:
    """What a JSON file of annotated tasks says; scores are 1 to `max_score`.

    Raises `InputError` naming task, annotation, field, what was expected and found.
    """
    try:
        tasks = json.loads(content)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error}); export from Label Studio as JSON") from None
    if not isinstance(tasks, list):
        raise InputError(
            f"{where}: expected a list of tasks, found {type(tasks).__name__}; export as JSON, not JSON-MIN"
        )
    return [
        found for index, task in enumerate(tasks) for found in _of_task(task, f"{where}: task {index + 1}", max_score)
    ]


def import_annotations(found: Sequence[Annotation], queue: pl.DataFrame, labels: QueueLabels) -> tuple[int, int]:
    """Store annotations as labels: how many are new, and how many stood already.

    What this queue exported and nobody changed there is no label of whoever brought it back, nor is it said again
    where it was withdrawn since. All are looked at before any is stored. Raises `InputError` for one of a pair that
    isn't in the queue.
    """
    known = set(queue["item_id"])
    strangers = [each for each in found if each.label.item_id not in known]
    if strangers:
        raise InputError(
            f"{strangers[0].where}: its pair isn't in this queue, and those of {len(strangers) - 1} other annotations "
            "neither. Import into the campaign and iteration that the tasks were exported from (--iteration)"
        )
    others = [each for each in found if not _is_own(each, labels)]
    stored = [labels.add(**each.label.model_dump(exclude={"label_id"}))[1] for each in others]
    return sum(stored), len(found) - sum(stored)


def _is_own(annotation: Annotation, labels: QueueLabels) -> bool:
    """Whether this queue has the very label that the annotation was exported from."""
    known = [labels.find(label_id) for label_id in annotation.exported]
    return any(label is not None and _what(label) == _what(annotation.label) for label in known)


def _what(label: Label) -> tuple[Any, ...]:
    return label.choice, label.first_score, label.second_score, label.comment.strip()


def _annotation(label: Label) -> dict[str, Any]:
    results = [
        _result(PAIRWISE, PAIRWISE, "pairwise", {"selected": SELECTED[label.choice]})
        if label.choice in SELECTED
        else None,
        _result(TIE, ANSWERS[0], "choices", {"choices": ["tie"]}) if label.choice == "tie" else None,
        _result(COMMENT, ANSWERS[0], "textarea", {"text": [label.comment]}) if label.comment else None,
        *(
            _result(name, text, "rating", {"rating": score}) if score is not None else None
            for name, text, score in zip(SCORES, ANSWERS, (label.first_score, label.second_score), strict=True)
        ),
    ]
    # Label Studio drops fields of an annotation that it doesn't know, and gives it to whoever imports it. It keeps the
    # ids of the results.
    return {
        "label_id": label.label_id,
        "result": [{"id": f"{label.label_id}-{each['from_name']}", **each} for each in results if each is not None],
        "was_cancelled": label.choice == "skip",
        "completed_by": {"email": label.annotator},
        "created_at": label.labelled_at.isoformat(),
        "lead_time": label.seconds,
        "swapped": label.swapped,
    }


def _result(name: str, to: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": to, "type": kind, "value": value}


def _of_task(task: Any, where: str, max_score: int) -> Iterator[Annotation]:
    data = task.get("data") if isinstance(task, Mapping) else None
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: has no `data`; export from Label Studio as JSON")
    item_id = data.get("item_id") or _item_of(data, where)
    for number, annotation in enumerate(task.get("annotations") or []):
        place = f"{where}, annotation {number + 1}"
        results = annotation.get("result") or [] if isinstance(annotation, Mapping) else None
        if not isinstance(results, list) or not all(_is_result(each) for each in results):
            raise InputError(f"{place}: expected a result that is a list of objects with type and value")
        label = _label({"item_id": str(item_id), **_fields(annotation, place)}, place, max_score)
        names = [str(each.get("id", "")).partition("-")[0] for each in results]
        yield Annotation(where, label, frozenset([str(annotation.get("label_id", "")), *names]))


def _is_result(result: Any) -> bool:
    return isinstance(result, Mapping) and isinstance(result.get("value", {}), Mapping)


def _label(fields: dict[str, Any], where: str, max_score: int) -> Label:
    """The fields as a label without an id; nothing is converted, a text that looks like a number neither."""
    try:
        label = Label.model_validate({"label_id": "", **fields}, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: {FIELDS.get(name, name)}: {first['msg']}, found {first['input']!r}") from None
    for name, score in zip(SCORES, (label.first_score, label.second_score), strict=True):
        if score is not None and not 1 <= score <= max_score:
            raise InputError(
                f"{where}: {name}: expected 1 to {max_score} (labelling.max_score), found {score:g}; give the Rating "
                f'maxRating="{max_score}"'
            )
    if label.seconds is not None and not math.isfinite(label.seconds):
        raise InputError(f"{where}: lead_time: expected seconds, found {label.seconds}")
    return label


def _item_of(data: Mapping[str, Any], where: str) -> str:
    """The item of a task that lost its `item_id`, by its content."""
    if not isinstance(data.get("messages"), list) or not all(isinstance(data.get(name), str) for name in ANSWERS):
        raise InputError(f"{where}: data has neither item_id nor messages, text1 and text2; it has {sorted(data)}")
    return item_id_of(data["messages"], data["text1"], data["text2"])


def _fields(annotation: Mapping[str, Any], where: str) -> dict[str, Any]:
    values = {result.get("type"): result.get("value", {}) for result in annotation.get("result") or []}
    comment = values.get("textarea", {}).get("text", [])
    scores = {
        result.get("from_name"): result.get("value", {}).get("rating")
        for result in annotation.get("result") or []
        if result.get("type") == "rating"
    }
    return {
        "annotator": _annotator(annotation.get("completed_by")),
        "choice": _choice(annotation, values, where),
        "first_score": scores.get(SCORES[0]),
        "second_score": scores.get(SCORES[1]),
        "comment": "\n".join(str(line) for line in comment) if isinstance(comment, list) else comment,
        "swapped": bool(annotation.get("swapped", False)),
        "labelled_at": _time(annotation.get("created_at"), where),
        "seconds": annotation.get("lead_time"),
    }


def _choice(annotation: Mapping[str, Any], values: Mapping[Any, Any], where: str) -> str:
    if annotation.get("was_cancelled"):
        return "skip"
    selected = values.get("pairwise", {}).get("selected")
    if selected in SIDES:
        return SIDES[selected]
    if "tie" in [str(each).lower() for each in values.get("choices", {}).get("choices", [])]:
        return "tie"
    raise InputError(f"{where}: expected a pairwise value left or right, or the choice tie; found {dict(values)}")


def _annotator(completed_by: Any) -> str:
    """Label Studio gives a number, or the user's fields."""
    if isinstance(completed_by, Mapping):
        completed_by = completed_by.get("email") or completed_by.get("id")
    return "label-studio" if completed_by is None else str(completed_by)


def _time(text: Any, where: str) -> datetime:
    try:
        read = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise InputError(f"{where}: created_at: expected a time such as 2026-01-31T12:00:00Z, found {text!r}") from None
    return read if read.tzinfo else read.replace(tzinfo=UTC)
