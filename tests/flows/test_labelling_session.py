"""A queue among several people: no double work, leases that run out, labels that outlive the process, undo."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.labelling.session import Item, Said, Session, UnknownItem, shown_before
from flows.labelling.statistics import statistics
from storage.labels import Label, QueueLabels

PEOPLE = ("ada", "bob", "cleo")


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def items(count):
    return [
        Item(f"i{index}", [{"role": "user", "content": f"q{index}"}], f"a{index}", f"b{index}")
        for index in range(count)
    ]


def session_at(root, count=3, clock=None, **options):
    return Session(items(count), QueueLabels(str(root), "c", "q"), clock=clock or Clock(), **options)


def ids(*shown):
    return [None if each is None else each.item.item_id for each in shown]


def test_two_people_never_hold_the_same_item(tmp_path):
    session = session_at(tmp_path)
    assert ids(session.next("ada"), session.next("bob"), session.next("cleo"), session.next("dan")) == [
        "i0",
        "i1",
        "i2",
        None,
    ]
    # Loading the page again gives the same item.
    assert ids(session.next("ada"), session.next("bob")) == ["i0", "i1"]
    session.save("ada", Said("i0", "left"))
    assert ids(session.next("ada")) == [None]
    assert session.progress("ada") == {"items": 3, "done": 1, "labels": 1, "wanted": 3, "mine": 1}


def test_a_lease_that_nobody_renews_is_given_to_another_and_its_label_still_kept(tmp_path):
    clock = Clock()
    session = session_at(tmp_path, 1, clock, lease_s=60)
    assert ids(session.next("ada"), session.next("bob")) == ["i0", None]
    clock.now = 50
    assert session.renew("ada", "i0")
    clock.now = 100
    assert ids(session.next("bob")) == [None]
    clock.now = 111
    assert ids(session.next("bob")) == ["i0"]
    assert not session.renew("ada", "i0") and session.renew("bob", "i0")
    # Her browser woke up: what she said isn't thrown away.
    assert session.save("ada", Said("i0", "tie"))[1] and session.save("bob", Said("i0", "tie"))[1]
    assert len(session.standing()) == 2


def test_what_was_said_outlives_the_process_and_is_not_asked_again(tmp_path):
    first = session_at(tmp_path)
    first.next("ada")
    stored, _ = first.save("ada", Said("i0", "left", 4, 2, "why", 3.5))
    second = session_at(tmp_path)  # as after a kill: no lease is known, the label is
    assert ids(second.next("ada")) == ["i1"]
    assert second.standing() == [stored]
    # A request that was sent again, because the answer was lost.
    assert second.save("ada", Said("i0", "right")) == (stored, False)
    with pytest.raises(UnknownItem, match="isn't in this queue"):
        second.save("ada", Said("elsewhere", "left"))


def test_sides_are_a_coin_per_person_and_labels_are_of_the_item(tmp_path):
    session = session_at(tmp_path, 200, labels_per_item=2)
    swapped = {name: [session.is_swapped(item.item_id, name) for item in session.items] for name in ("ada", "bob")}
    assert swapped["ada"] != swapped["bob"] and all(60 < sum(each) < 140 for each in swapped.values())
    for name in ("ada", "bob"):
        for item in session.items[:20]:
            shown = session.next(name)
            assert {shown.left, shown.right} == {item.first, item.second}
            side = "left" if shown.left == item.first else "right"
            score = {"left_score" if side == "left" else "right_score": 5.0}
            label, _ = session.save(name, Said(item.item_id, side, **score))
            assert (label.choice, label.first_score, label.second_score) == ("first", 5.0, None)
            assert label.swapped == shown.swapped
    found = statistics(session.standing())
    assert found["agreement"] == 1 and found["shared_items"] == 20
    assert found["pairs"] == [{"first": "ada", "second": "bob", "items": 20, "agreement": 1.0, "kappa": None}]


def test_undo_asks_again_with_what_was_said(tmp_path):
    clock = Clock()
    session = session_at(tmp_path, 2, clock)
    assert session.undo("ada") is None
    shown = session.next("ada")
    left_is_first = shown.left == "a0"
    session.save("ada", Said("i0", "left", 4, None, "hm"))
    assert ids(session.next("ada")) == ["i1"]
    again = session.undo("ada")
    assert again.item.item_id == "i0" and again.before.choice == ("first" if left_is_first else "second")
    assert shown_before(again) == {"left_score": 4, "right_score": None, "comment": "hm"}
    # The item is hers alone, and the page loaded again shows it again.
    assert ids(session.next("bob"), session.next("ada")) == ["i1", "i0"]
    assert session.save("ada", Said("i0", "tie"))[1]
    assert [label.choice for label in session.standing()] == ["tie"]


def test_a_skipped_item_goes_to_somebody_else_and_overlap_to_another_person(tmp_path):
    session = session_at(tmp_path, 1, labels_per_item=2)
    for name, choice in (("ada", "skip"), ("bob", "left"), ("cleo", "right")):
        assert ids(session.next(name)) == ["i0"]
        session.save(name, Said("i0", choice))
        assert session.next(name) is None
    assert session.next("dan") is None
    assert session.progress("ada") == {"items": 1, "done": 1, "labels": 2, "wanted": 2, "mine": 1}


def test_the_same_pair_labelled_in_another_queue_is_done(tmp_path):
    other = QueueLabels(str(tmp_path), "c", "earlier")
    before = [other.add("i0", "ada", "first")[0], other.add("i9", "ada", "first")[0]]
    session = session_at(tmp_path, 2, elsewhere=before)
    assert ids(session.next("bob"), session.next("cleo")) == ["i1", None]
    assert session.progress("ada")["done"] == 1


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(PEOPLE), st.sampled_from(["left", "tie", "skip", "undo", "wait", "crash"])),
        max_size=40,
    )
)
def test_no_order_of_events_loses_a_label_or_asks_twice(tmp_path_factory, events):
    root, clock = tmp_path_factory.mktemp("s"), Clock()
    session = session_at(root, 3, clock, labels_per_item=2)
    expected: dict[str, list[Label]] = {name: [] for name in PEOPLE}
    for name, event in events:
        if event == "crash":
            session = session_at(root, 3, clock, labels_per_item=2)
        elif event == "wait":
            clock.now += 10_000
        elif event == "undo":
            assert (session.undo(name) is None) == (not expected[name])
            expected[name] = expected[name][:-1]
        elif shown := session.next(name):
            assert shown.item.item_id not in {label.item_id for label in expected[name]}
            stored, ours = session.save(name, Said(shown.item.item_id, event))
            assert ours
            expected[name].append(stored)
    session.labels.refresh()
    assert {label.label_id for label in session.labels.standing()} == {
        label.label_id for labels in expected.values() for label in labels
    }
