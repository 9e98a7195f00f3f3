"""Label Studio's JSON: out and in again is the same, and its own exports are understood."""

import json
from datetime import UTC, datetime
from functools import partial

import pytest
from command import invoke as run_command
from label_queues import CAMPAIGN, open_queue

from flows.label_command import register
from flows.labelling.label_studio import annotations_of, import_annotations, tasks_of
from storage.artifacts import Artifact
from storage.errors import InputError
from storage.labels import LabelQueues

PAIRS = [("who?", "me", "you"), ("<script>alert(1)</script>", "ä", "b"), ("more", "x", "y"), ("last", "x", "z")]
invoke = partial(run_command, register, "label")


def said(labels):
    """What labels say, without the names of their files."""
    return sorted((each.model_dump(exclude={"label_id"}) for each in labels), key=str)


@pytest.fixture
def filled(tmp_path):
    """A root whose queue has labels of every kind."""
    root = str(tmp_path / "root")
    opened = open_queue(tmp_path, root, PAIRS, labels_per_item=2)
    labels = LabelQueues(root, CAMPAIGN).labels_of(opened.queue)
    ids = [item for item in opened_items(root, opened)]
    at = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    labels.add(ids[0], "ada", "first", first_score=4.0, second_score=1.0, seconds=2.5, labelled_at=at)
    labels.add(ids[0], "bob", "second", swapped=True, labelled_at=at)
    labels.add(ids[1], "ada", "tie", comment="same </textarea>", labelled_at=at)
    labels.add(ids[2], "ada", "skip", labelled_at=at)
    return root, opened, labels.standing()


def opened_items(root, opened):
    return Artifact.at(root, opened.queue).read("label_queue")["item_id"].to_list()


def test_out_and_in_again_is_the_same(filled, tmp_path):
    root, opened, before = filled
    path = tmp_path / "tasks.json"
    assert "4 tasks, 4 annotations" in invoke(CAMPAIGN, "--root", root, "--export-label-studio", str(path))
    fresh = str(tmp_path / "fresh")
    open_queue(tmp_path, fresh, PAIRS, labels_per_item=2)
    said_so = invoke(CAMPAIGN, "--root", fresh, "--import-label-studio", str(path))
    assert "4 labels stored, 0 stood already" in said_so
    assert said(LabelQueues(fresh, CAMPAIGN).labels_of(opened.queue).standing()) == said(before)
    assert "0 labels stored, 4 stood already" in invoke(CAMPAIGN, "--root", fresh, "--import-label-studio", str(path))


def through_label_studio(tasks):
    """What is left of them there: known fields alone, given to whoever imported, at the time of the import."""
    kept = ("result", "was_cancelled", "lead_time")
    for task in tasks:
        task["annotations"] = [
            {name: each[name] for name in kept} | {"completed_by": 1, "created_at": "2026-03-03T00:00:00Z"}
            for each in task["annotations"]
            if not each["was_cancelled"]
        ]
    return tasks


def test_own_labels_that_come_back_are_nobody_elses(filled):
    root, opened, before = filled
    queue = Artifact.at(root, opened.queue).read("label_queue")
    labels = LabelQueues(root, CAMPAIGN).labels_of(opened.queue)
    tasks = through_label_studio(tasks_of(queue, before))
    labels.withdraw(next(label.label_id for label in before if label.annotator == "bob"))
    standing = labels.standing()
    back = annotations_of(json.dumps(tasks), "file", 5)
    assert import_annotations(back, queue, labels) == (0, 3) and labels.standing() == standing
    # Neither where a tool keeps all fields.
    assert import_annotations(annotations_of(json.dumps(tasks_of(queue, before)), "file", 5), queue, labels) == (0, 4)
    assert labels.standing() == standing
    # Somebody there thought otherwise: that is a label.
    [pairwise] = [each for each in tasks[0]["annotations"][0]["result"] if each["type"] == "pairwise"]
    pairwise["value"] = {"selected": "right"}
    assert import_annotations(annotations_of(json.dumps(tasks), "file", 5), queue, labels) == (1, 2)
    [new] = [label for label in labels.standing() if label not in standing]
    assert (new.annotator, new.choice) == ("1", "second")


def test_an_export_of_label_studio_itself(filled, tmp_path):
    root, opened, before = filled
    task = {
        "id": 17,
        "data": {"messages": [{"role": "user", "content": "last"}], "text1": "x", "text2": "z", "prompt": "user: last"},
        "annotations": [
            {
                "id": 3,
                "completed_by": 7,
                "was_cancelled": False,
                "created_at": "2026-02-03T04:05:06.789000Z",
                "lead_time": 4.288,
                "result": [
                    {"value": {"selected": "right"}, "id": "a", "from_name": "pw", "to_name": "pw", "type": "pairwise"},
                    {"value": {"rating": 3}, "id": "b", "from_name": "score2", "to_name": "text2", "type": "rating"},
                ],
            }
        ],
        "predictions": [],
    }
    path = tmp_path / "project-1.json"
    path.write_text(json.dumps([task]))
    invoke(CAMPAIGN, "--root", root, "--import-label-studio", str(path))
    [new] = [each for each in LabelQueues(root, CAMPAIGN).labels_of(opened.queue).standing() if each not in before]
    assert (new.annotator, new.choice, new.second_score, new.first_score, new.seconds) == (
        "7",
        "second",
        3.0,
        None,
        4.288,
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("{}", "expected a list of tasks, found dict"),
        ("[{}]", "task 1: has no `data`"),
        (
            '[{"data": {"text1": "x"}}]',
            r"task 1: data has neither item_id nor messages, text1 and text2; it has \['text1'\]",
        ),
        (
            '[{"data": {"item_id": "x"}, "annotations": [{"result": []}]}]',
            "task 1, annotation 1: expected a pairwise value",
        ),
        (
            '[{"data": {"item_id": "x"}, "annotations": [{"was_cancelled": true, "created_at": "now"}]}]',
            "created_at: expected a time such as .*, found 'now'",
        ),
        (
            '[{"data": {"item_id": "x"}, "annotations": [{"was_cancelled": true, "created_at": "2026-01-01"}]}]',
            "task 1: its pair isn't in this queue",
        ),
    ],
)
def test_what_cannot_be_imported_is_named_and_nothing_is_stored(filled, tmp_path, content, message):
    root, opened, before = filled
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        invoke(CAMPAIGN, "--root", root, "--import-label-studio", str(path))
    assert LabelQueues(root, CAMPAIGN).labels_of(opened.queue).standing() == before


def rated(rating=3, **more):
    """A task's annotation of Label Studio with a score."""
    score = {"value": {"rating": rating}, "from_name": "score1", "to_name": "text1", "type": "rating"}
    side = {"value": {"selected": "left"}, "from_name": "pw", "to_name": "pw", "type": "pairwise"}
    return {"completed_by": 7, "created_at": "2026-02-03T04:05:06Z", "result": [side, score], **more}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (rated(9), r"score1: expected 1 to 5 .*, found 9; give the Rating maxRating=\"5\""),
        (rated(0), "score1: expected 1 to 5"),
        (rated(float("nan")), "score1: expected 1 to 5"),
        (rated("good"), "score1: Input should be a valid number, found 'good'"),
        (rated("3"), "score1: Input should be a valid number, found '3'"),
        (rated(lead_time=-1.0), "lead_time: Input should be greater than or equal to 0, found -1.0"),
        (rated(lead_time=float("inf")), "lead_time: expected seconds, found inf"),
        (rated(result=["left"]), "expected a result that is a list of objects"),
        ("left", "expected a result that is a list of objects"),
    ],
)
def test_every_annotation_is_looked_at_before_one_is_taken(bad, message):
    tasks = [{"data": {"item_id": name}, "annotations": [rated(), each]} for name, each in (("a", rated()), ("b", bad))]
    with pytest.raises(InputError, match=f"file: task 2, annotation 2: {message}"):
        annotations_of(json.dumps(tasks), "file", 5)


def test_what_the_command_refuses(filled, tmp_path):
    root, _, _ = filled
    with pytest.raises(InputError, match=r"'other': unknown below .*; there are people"):
        invoke("other", "--root", root)
    with pytest.raises(InputError, match="not both"):
        invoke(CAMPAIGN, "--root", root, "--import-label-studio", "a", "--export-label-studio", "b")
    with pytest.raises(InputError, match="no such file"):
        invoke(CAMPAIGN, "--root", root, "--import-label-studio", str(tmp_path / "nothing.json"))
    for host in ("0.0.0.0", "192.168.1.7", "example.org", "::"):
        with pytest.raises(InputError, match="others can reach the page there, and it has no token"):
            invoke(CAMPAIGN, "--root", root, "--host", host)
    with pytest.raises(InputError, match="the token has 5 characters, expected 16 or more"):
        invoke(CAMPAIGN, "--root", root, "--host", "0.0.0.0", "--token", "short")
