"""What people say of pairs of answers: one small file per label, each on disk before the next item is shown.

`campaigns/<name>/label_queues/00003-<fingerprint>.json` says which queue an iteration opened.
`campaigns/<name>/labels/<fingerprint of the queue>/<label_id>.json` is a label, written once, conditionally;
`<label_id>.withdrawn.json` beside it takes it back. Nothing is ever changed or removed.
"""

import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from storage.documents import read_document
from storage.errors import InputError
from storage.fingerprints import digest
from storage.records import RECORDS
from storage.store import open_store

WITHDRAWN = ".withdrawn.json"
Choice = Literal["first", "second", "tie", "skip"]


class Label(BaseModel):
    """One person's answer to one item of a queue. `first` and `second` are the item's, however they were shown."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label_id: str
    item_id: str
    annotator: str
    choice: Choice
    first_score: float | None = Field(None, description="absolute, in the scale that the page offered")
    second_score: float | None = None
    comment: str = ""
    swapped: bool = Field(False, description="the second answer stood left")
    labelled_at: datetime
    seconds: float | None = Field(None, ge=0, description="for which the item was looked at")


class Withdrawal(BaseModel):
    """A label was taken back, and when."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label_id: str
    withdrawn_at: datetime


class OpenQueue(BaseModel):
    """A queue that people are asked to label."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    iteration: int = Field(ge=0)
    queue: str = Field(description="artifact of the stage label_queue")
    labels_per_item: int = Field(1, ge=1)
    max_score: int = Field(5, ge=2, description="absolute scores are 1 to this")
    opened_at: datetime


class QueueLabels:
    """The labels of one queue, read as they come. Several processes and threads may add to them at once.

    An annotator has at most one standing label per item, whoever writes it: its id is made of queue, item, annotator
    and the number of labels before it that were withdrawn, and of two writers of one id one wins.
    """

    def __init__(self, root: str, campaign: str, queue: str) -> None:
        self.queue = queue
        self.campaign = campaign
        self._store = open_store(root)
        self._folder = f"campaigns/{campaign}/labels/{queue}"
        self._labels: dict[str, Label] = {}
        self._withdrawn: set[str] = set()
        # Of the two above, never held while the store is asked.
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Read the labels and withdrawals that came since the last time. Raises `CorruptArtifact` for a damaged one."""
        names = [name for name in self._store.names(self._folder) if not name.startswith(".")]
        with self._lock:
            self._withdrawn |= {name.removesuffix(WITHDRAWN) for name in names if name.endswith(WITHDRAWN)}
            known = {f"{label_id}.json" for label_id in self._labels}
        for name in names:
            if name not in known and not name.endswith(WITHDRAWN):
                self._know(read_document(self._store, f"{self._folder}/{name}", Label))

    def standing(self) -> list[Label]:
        """The labels that weren't withdrawn, oldest first, as of the last `refresh` and what was added here since."""
        with self._lock:
            found = [label for key, label in self._labels.items() if key not in self._withdrawn]
        return sorted(found, key=lambda label: (label.labelled_at, label.label_id))

    @property
    def withdrawn(self) -> frozenset[str]:
        """Ids of the labels that were taken back, as of the last `refresh`."""
        with self._lock:
            return frozenset(self._withdrawn)

    def find(self, label_id: str) -> Label | None:
        """The label of this id, standing or withdrawn, as of the last `refresh`; None where this queue has none."""
        with self._lock:
            return self._labels.get(label_id)

    def add(self, item_id: str, annotator: str, choice: Choice, **more: object) -> tuple[Label, bool]:
        """Store a label; on return it is on disk. Gives the label that stands, and whether it is this one.

        `more` are the other fields of `Label`. Where this annotator's label of this item stands already (another
        tab, a repeated request) that one is given, unchanged.
        """
        stamp = more.pop("labelled_at", None) or datetime.now(UTC)
        attempt = 0
        while True:
            label_id = digest([self.queue, item_id, annotator, attempt])
            attempt += 1
            if label_id in self._withdrawn:
                continue
            label = Label.model_validate(
                {
                    "label_id": label_id,
                    "item_id": item_id,
                    "annotator": annotator,
                    "choice": choice,
                    "labelled_at": stamp,
                    **more,
                }
            )
            if self._store.create(f"{self._folder}/{label_id}.json", label.model_dump_json(indent=1).encode()):
                return self._know(label), True
            found = self._know(read_document(self._store, f"{self._folder}/{label_id}.json", Label))
            if not self._store.exists(f"{self._folder}/{label_id}{WITHDRAWN}"):
                return found, False
            self._know_withdrawn(label_id)

    def withdraw(self, label_id: str) -> None:
        """Take a label back; the file stays. Withdrawing it again does nothing."""
        withdrawal = Withdrawal(label_id=label_id, withdrawn_at=datetime.now(UTC))
        self._store.create(f"{self._folder}/{label_id}{WITHDRAWN}", withdrawal.model_dump_json(indent=1).encode())
        self._know_withdrawn(label_id)

    def _know(self, label: Label) -> Label:
        with self._lock:
            self._labels[label.label_id] = label
        return label

    def _know_withdrawn(self, label_id: str) -> None:
        with self._lock:
            self._withdrawn.add(label_id)


class LabelQueues:
    """The queues of a campaign: which are open for labelling, and all that was said of them."""

    def __init__(self, root: str, campaign: str) -> None:
        self.root = root
        self.campaign = campaign
        self._store = open_store(root)
        self._folder = f"campaigns/{campaign}/label_queues"

    def open(self, queue: OpenQueue) -> OpenQueue:
        """Offer a queue to people. One that is open already stays as it is; gives what stands."""
        path = f"{self._folder}/{queue.iteration:05d}-{queue.queue.rpartition('/')[2]}.json"
        if self._store.create(path, queue.model_dump_json(indent=1).encode()):
            return queue
        return read_document(self._store, path, OpenQueue)

    def all(self) -> list[OpenQueue]:
        """Every open queue, by iteration, the latest of an iteration last."""
        names = [name for name in self._store.names(self._folder) if not name.startswith(".")]
        found = [read_document(self._store, f"{self._folder}/{name}", OpenQueue) for name in names]
        return sorted(found, key=lambda queue: (queue.iteration, queue.opened_at))

    def newest(self, iteration: int | None = None) -> OpenQueue:
        """The latest queue, of that iteration where one is named. Raises `InputError` when there is none."""
        known = self.all()
        found = [queue for queue in known if iteration in (None, queue.iteration)]
        if found:
            return found[-1]
        if known:
            iterations = sorted({queue.iteration for queue in known})
            raise InputError(
                f"campaign {self.campaign!r}: iteration {iteration} has no label queue; those of {iterations} have"
            )
        raise InputError(
            f"campaign {self.campaign!r} below {self.root}: no iteration has a label queue. Add "
            "`labelling: {size: 100}` to the run file; the next iteration makes one"
        )

    def labels_of(self, queue: str) -> QueueLabels:
        """The labels of a queue, by the id of its artifact or its fingerprint, read once."""
        labels = QueueLabels(self.root, self.campaign, queue.rpartition("/")[2])
        labels.refresh()
        return labels


def label_frame(labels: Iterable[Label]) -> pl.DataFrame:
    """Labels as the `labels` record, in their order."""
    rows = [label.model_dump() for label in labels]
    return pl.DataFrame(rows, schema=RECORDS["labels"].create_empty().schema, orient="row")


def joined_labels(known: Iterable[QueueLabels], before: pl.DataFrame) -> pl.DataFrame:
    """The standing labels of several queues, and those taken up before that weren't withdrawn since.

    The latter are all that a fork has of the campaign that it came from.
    """
    queues = list(known)
    standing = label_frame(label for labels in queues for label in labels.standing())
    gone = {label_id for labels in queues for label_id in labels.withdrawn} | set(standing["label_id"])
    kept = before.filter(~pl.col("label_id").is_in(sorted(gone)))
    return pl.concat([standing, kept.cast(standing.schema)])


def labelled_items(queues: Iterable[pl.LazyFrame], labels: pl.DataFrame) -> pl.DataFrame:
    """Those items of several `label_queue` tables that have a label, each once."""
    wanted = labels["item_id"].unique().implode()
    found = pl.concat([queue.filter(pl.col("item_id").is_in(wanted)) for queue in queues]).collect()
    return found.unique("item_id", keep="first", maintain_order=True)
