"""Labels in a real store: once per annotator and item, taken back without being lost, whoever writes."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from storage.errors import CorruptArtifact, InputError
from storage.labels import LabelQueues, OpenQueue, QueueLabels, label_frame
from storage.records import HumanLabel
from storage.store import open_store


def opened(iteration, queue):
    return OpenQueue(iteration=iteration, queue=f"label_queue/{queue}", opened_at=datetime.now(UTC))


def test_a_label_is_there_for_every_reader_and_stands_once(root):
    labels = QueueLabels(root, "c", "q")
    stored, ours = labels.add("item", "ada", "first", first_score=4.0, comment="ünï", seconds=1.5)
    assert ours
    again, ours = labels.add("item", "ada", "second")
    assert (again, ours) == (stored, False)
    # Another process, which has read nothing yet, and whose annotator has another tab open.
    other = QueueLabels(root, "c", "q")
    assert other.add("item", "ada", "tie") == (stored, False)
    assert other.add("item", "bob", "tie")[1]
    labels.refresh()
    assert [label.annotator for label in labels.standing()] == ["ada", "bob"]
    assert HumanLabel.is_valid(label_frame(labels.standing()))


def test_taking_back_keeps_the_file_and_lets_the_annotator_say_again(root):
    labels = QueueLabels(root, "c", "q")
    first, _ = labels.add("item", "ada", "first")
    labels.withdraw(first.label_id)
    labels.withdraw(first.label_id)
    assert labels.standing() == []
    # The other process learns of the withdrawal from the store.
    second, ours = QueueLabels(root, "c", "q").add("item", "ada", "second")
    assert ours and second.label_id != first.label_id
    labels.refresh()
    assert labels.standing() == [second]
    names = open_store(root).names("campaigns/c/labels/q")
    assert sorted(names) == sorted(
        [f"{first.label_id}.json", f"{first.label_id}.withdrawn.json", f"{second.label_id}.json"]
    )


def test_of_many_writers_of_one_label_one_wins(tmp_path):
    def write(choice):
        return QueueLabels(str(tmp_path), "c", "q").add("item", "ada", choice)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(write, ["first", "second", "tie", "skip"] * 4))
    assert sum(ours for _, ours in found) == 1
    assert len({label for label, _ in found}) == 1


def test_a_label_comes_while_another_thread_reads(tmp_path):
    reading = threading.Event()

    class Slow(dict):
        """Labels of which going through takes as long as that of very many."""

        def __iter__(self):
            for key in super().__iter__():
                reading.set()
                time.sleep(0.3)
                yield key

    labels = QueueLabels(str(tmp_path), "c", "q")
    labels.add("item", "ada", "first")
    labels._labels = Slow(labels._labels)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(labels.refresh)
        assert reading.wait(60)
        labels.add("item", "bob", "tie")
        read.result()
    assert [label.annotator for label in labels.standing()] == ["ada", "bob"]


def test_the_newest_queue_and_what_is_said_where_there_is_none(tmp_path):
    queues = LabelQueues(str(tmp_path), "c")
    with pytest.raises(InputError, match=r"no iteration has a label queue\. Add `labelling"):
        queues.newest()
    first = queues.open(opened(1, "a"))
    queues.open(opened(2, "b"))
    assert queues.open(opened(1, "a")) == first
    assert [queue.queue for queue in queues.all()] == ["label_queue/a", "label_queue/b"]
    assert queues.newest().iteration == 2 and queues.newest(1) == first
    with pytest.raises(InputError, match=r"iteration 7 has no label queue; those of \[1, 2\] have"):
        queues.newest(7)


def test_a_damaged_label_is_named(tmp_path):
    labels = QueueLabels(str(tmp_path), "c", "q")
    stored, _ = labels.add("item", "ada", "first")
    path = tmp_path / "campaigns" / "c" / "labels" / "q" / f"{stored.label_id}.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(CorruptArtifact, match=stored.label_id):
        QueueLabels(str(tmp_path), "c", "q").refresh()
