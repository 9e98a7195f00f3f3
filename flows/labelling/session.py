"""One queue being labelled by several people: who is asked what next, what they said, what they took back.

Nothing here knows HTTP. What is said lies in the store before a call returns; only the leases, which keep two people
from the same item, live in this process: after a crash an item is asked again, a label never.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from storage.fingerprints import digest
from storage.labels import Choice, Label, QueueLabels

LEASE_S = 15 * 60.0
REFRESH_S = 5.0
Side = Literal["left", "right", "tie", "skip"]
SKIP = "skip"


@dataclass(frozen=True)
class Item:
    """Two answers to a conversation."""

    item_id: str
    messages: Sequence[Mapping[str, str]]
    first: str
    second: str


@dataclass(frozen=True)
class Shown:
    """An item as one annotator sees it: in an order of their own, and with what they said before taking it back."""

    item: Item
    swapped: bool
    before: Label | None = None

    @property
    def left(self) -> str:
        """The answer that stands left."""
        return self.item.second if self.swapped else self.item.first

    @property
    def right(self) -> str:
        """The answer that stands right."""
        return self.item.first if self.swapped else self.item.second


@dataclass(frozen=True)
class Said:
    """What an annotator says of an item as it was shown; scores are absolute."""

    item_id: str
    choice: Side
    left_score: float | None = None
    right_score: float | None = None
    comment: str = ""
    seconds: float | None = None


@dataclass
class _Lease:
    annotator: str
    expires: float
    before: Label | None = None


class UnknownItem(Exception):
    """An item that isn't in this queue."""


@dataclass
class Session:
    """A queue, its labels and its leases. Safe to call from several threads.

    `elsewhere` are standing labels of the campaign's other queues: the same pair isn't asked again there.
    """

    items: Sequence[Item]
    labels: QueueLabels
    labels_per_item: int = 1
    elsewhere: Iterable[Label] = ()
    lease_s: float = LEASE_S
    clock: Callable[[], float] = time.monotonic
    _leases: dict[str, list[_Lease]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _refreshed: float | None = None

    def __post_init__(self) -> None:
        self._by_id = {item.item_id: item for item in self.items}
        self._elsewhere = [label for label in self.elsewhere if label.item_id in self._by_id]

    def next(self, annotator: str) -> Shown | None:
        """The item that this annotator is to label now: the one that they hold, else the first that needs a label.

        None when there is nothing left for them, for now: what others hold may come back.
        """
        self._refresh()
        with self._lock:
            self._expire()
            standing = self._standing()
            asked = {label.item_id for label in standing if label.annotator == annotator}
            held = self._held_by(annotator, asked)
            if held is not None:
                return held
            given = Counter(label.item_id for label in standing if label.choice != SKIP)
            for item in self.items:
                leases = self._leases.get(item.item_id, [])
                if item.item_id not in asked and given[item.item_id] + len(leases) < self.labels_per_item:
                    return self._lease(item, annotator)
            return None

    def save(self, annotator: str, said: Said) -> tuple[Label, bool]:
        """Store what was said; on return it is on disk. Gives the label that stands, and whether it is this one.

        A label whose lease was lost meanwhile is kept too. Raises `UnknownItem`.
        """
        item = self._item(said.item_id)
        swapped = self.is_swapped(item.item_id, annotator)
        scores = (said.left_score, said.right_score)
        stored = self.labels.add(
            item.item_id,
            annotator,
            _choice(said.choice, swapped),
            first_score=scores[int(swapped)],
            second_score=scores[1 - int(swapped)],
            comment=said.comment,
            swapped=swapped,
            seconds=said.seconds,
        )
        with self._lock:
            self._release(item.item_id, annotator)
        return stored

    def undo(self, annotator: str) -> Shown | None:
        """Take back this annotator's latest label and ask again. None when there is nothing to take back."""
        self._refresh(now=True)
        own = [label for label in self.labels.standing() if label.annotator == annotator]
        if not own:
            return None
        last = own[-1]
        with self._lock:
            for leases in self._leases.values():
                leases[:] = [lease for lease in leases if lease.annotator != annotator]
            shown = self._lease(self._item(last.item_id), annotator, before=last)
        self.labels.withdraw(last.label_id)
        return shown

    def renew(self, annotator: str, item_id: str) -> bool:
        """Hold an item for longer. False when the lease is lost: somebody else may have the item now."""
        with self._lock:
            self._expire()
            for lease in self._leases.get(item_id, []):
                if lease.annotator == annotator:
                    lease.expires = self.clock() + self.lease_s
                    return True
        return False

    def progress(self, annotator: str) -> dict[str, int]:
        """How far the queue and this annotator are: counts of items and labels, skipped ones apart."""
        standing = self._standing()
        given = Counter(label.item_id for label in standing if label.choice != SKIP)
        return {
            "items": len(self.items),
            "done": sum(given[item.item_id] >= self.labels_per_item for item in self.items),
            "labels": sum(min(count, self.labels_per_item) for count in given.values()),
            "wanted": len(self.items) * self.labels_per_item,
            "mine": sum(label.annotator == annotator for label in self.labels.standing()),
        }

    def standing(self) -> list[Label]:
        """This queue's labels now."""
        self._refresh()
        return self.labels.standing()

    def is_swapped(self, item_id: str, annotator: str) -> bool:
        """Whether the second answer stands left: a coin per item and annotator that falls alike after a restart."""
        return int(digest([self.labels.queue, item_id, annotator])[0], 16) % 2 == 1

    def _refresh(self, *, now: bool = False) -> None:
        if now or self._refreshed is None or self.clock() - self._refreshed >= REFRESH_S:
            self.labels.refresh()
            self._refreshed = self.clock()

    def _standing(self) -> list[Label]:
        return [*self._elsewhere, *self.labels.standing()]

    def _item(self, item_id: str) -> Item:
        if item_id not in self._by_id:
            raise UnknownItem(f"item {item_id!r} isn't in this queue; load the page again")
        return self._by_id[item_id]

    def _held_by(self, annotator: str, asked: set[str]) -> Shown | None:
        for item_id, leases in self._leases.items():
            for lease in leases:
                if lease.annotator == annotator and item_id not in asked:
                    lease.expires = self.clock() + self.lease_s
                    return Shown(self._by_id[item_id], self.is_swapped(item_id, annotator), lease.before)
        return None

    def _lease(self, item: Item, annotator: str, before: Label | None = None) -> Shown:
        lease = _Lease(annotator, self.clock() + self.lease_s, before)
        self._leases.setdefault(item.item_id, []).append(lease)
        return Shown(item, self.is_swapped(item.item_id, annotator), before)

    def _release(self, item_id: str, annotator: str) -> None:
        kept = [lease for lease in self._leases.get(item_id, []) if lease.annotator != annotator]
        self._leases[item_id] = kept

    def _expire(self) -> None:
        now = self.clock()
        for item_id, leases in list(self._leases.items()):
            kept = [lease for lease in leases if lease.expires > now]
            if kept:
                self._leases[item_id] = kept
            else:
                del self._leases[item_id]


def shown_before(shown: Shown) -> dict[str, Any] | None:
    """What was said before it was taken back, by the sides as this annotator sees them."""
    before = shown.before
    if before is None:
        return None
    scores = (before.first_score, before.second_score)
    return {
        "left_score": scores[int(shown.swapped)],
        "right_score": scores[1 - int(shown.swapped)],
        "comment": before.comment,
    }


def _choice(side: Side, swapped: bool) -> Choice:
    if side in ("left", "right"):
        return "first" if (side == "left") != swapped else "second"
    return "tie" if side == "tie" else "skip"
