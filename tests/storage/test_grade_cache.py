"""Kept grades: found again on both kinds of root, whoever wrote them, and never collected as garbage."""

import threading

import polars as pl
import pytest

from storage.collection import collect
from storage.errors import CorruptArtifact
from storage.grade_cache import FOLDER, GradeCache
from storage.store import open_store
from tasks.grading.paid import kept_frame


def rows(*given: tuple) -> pl.DataFrame:
    """Rows of (key, status, score, ticket)."""
    return kept_frame([(key, status, score, None, None, "{}", 0.5, ticket) for key, status, score, ticket in given])


def test_what_was_kept_is_found_and_nothing_else(root):
    cache = GradeCache(root)
    assert cache.find("judge", ["a"]).is_empty()
    cache.add("judge", rows(("a", "ok", 0.25, None), ("b", "ok", 0.5, None)))
    cache.add("judge", rows(("c", "pending", None, "t1")))
    found = GradeCache(root).find("judge", ["a", "c", "nobody"]).sort("row_key")
    assert found.select("row_key", "status", "score", "ticket").rows() == [
        ("a", "ok", 0.25, None),
        ("c", "pending", None, "t1"),
    ]
    assert cache.find("another", ["a"]).is_empty()
    assert cache.spent("judge")["cost"].to_list() == [0.5, 0.5]


def test_an_answer_wins_over_its_ticket_and_the_first_answer_over_the_next(tmp_path):
    cache = GradeCache(str(tmp_path))
    cache.add("judge", rows(("a", "pending", None, "t1")))
    cache.add("judge", rows(("a", "ok", 0.25, None)))
    cache.add("judge", rows(("a", "ok", 0.75, None)))
    cache.add("judge", rows(("a", "pending", None, "t2")))
    assert cache.find("judge", ["a"]).select("status", "score").rows() == [("ok", 0.25)]


def test_a_withdrawn_ticket_is_gone_until_the_next_one(tmp_path):
    cache = GradeCache(str(tmp_path))
    cache.add("judge", rows(("a", "pending", None, "t1")))
    cache.add("judge", rows(("a", "pending", None, None)))
    assert cache.find("judge", ["a"]).is_empty()
    cache.add("judge", rows(("a", "pending", None, "t2")))
    assert cache.find("judge", ["a"])["ticket"].to_list() == ["t2"]


def test_joining_leaves_one_segment_with_everything(root):
    cache, store = GradeCache(root), open_store(root)
    names = [cache.add("judge", rows((f"{index}", "ok", 0.5, None))) for index in range(4)]
    cache.join("judge", names[:3])
    assert len(store.names(f"{FOLDER}/judge")) == 2
    assert len(cache.find("judge", [str(index) for index in range(4)])) == 4


def test_readers_find_everything_while_segments_are_joined(tmp_path):
    cache = GradeCache(str(tmp_path))
    cache.add("judge", rows(("a", "ok", 0.5, None)))
    stop = threading.Event()

    def write():
        while not stop.is_set():
            cache.join("judge", [cache.add("judge", rows((str(index), "ok", 0.5, None))) for index in range(3)])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert all(len(GradeCache(str(tmp_path)).find("judge", ["a"])) == 1 for _ in range(60))
    finally:
        stop.set()
        writer.join()


def test_collection_leaves_the_cache_alone_but_not_what_a_cut_off_write_left(root):
    cache, store = GradeCache(root), open_store(root)
    cache.add("judge", rows(("a", "ok", 0.5, None)))
    kept = store.names(f"{FOLDER}/judge")
    left = f"{FOLDER}/judge/.{'0' * 32}.parquet.{'1' * 32}"
    store.write(left, b"PAR1 cut off")
    assert len(cache.find("judge", ["a"])) == 1
    assert [each.path for each in collect(root, 0)] == [left]
    assert store.names(f"{FOLDER}/judge") == kept
    assert len(cache.find("judge", ["a"])) == 1


def test_a_damaged_segment_is_named(tmp_path):
    cache = GradeCache(str(tmp_path))
    open_store(str(tmp_path)).write(f"{FOLDER}/judge/{'0' * 32}.parquet", b"not parquet")
    with pytest.raises(CorruptArtifact, match=r"grade_cache/judge: a segment can't be read"):
        cache.find("judge", ["a"])
