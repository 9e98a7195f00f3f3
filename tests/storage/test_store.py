"""The store on a local folder and on a real SeaweedFS: the same tests for both."""

import threading

import pytest

from storage.errors import InputError, StoreUnreachable
from storage.store import Store, open_store


def test_create_is_conditional(root):
    store = open_store(root)
    assert store.create("a/b.json", b"first")
    assert not store.create("a/b.json", b"second")
    assert store.read("a/b.json") == b"first"


def test_of_many_writers_one_wins(root):
    store, wins = open_store(root), []
    writers = [
        threading.Thread(target=lambda n=n: wins.append(n) if store.create("state.json", b"%d" % n) else None)
        for n in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(wins) == 1
    assert store.read("state.json") == b"%d" % wins[0]


def test_write_replaces_and_remove_forgets(root):
    store = open_store(root)
    store.write("x", b"1")
    store.write("x", b"2")
    assert store.read("x") == b"2"
    store.remove("x")
    store.remove("x")
    assert not store.exists("x")
    with pytest.raises(FileNotFoundError):
        store.read("x")


def test_names_walk_and_files(root, tmp_path):
    store = open_store(root)
    assert store.names("nothing") == []
    source = tmp_path / "part"
    source.write_bytes(b"12345")
    store.put_file(source, "artifacts/s/f/part")
    store.write("artifacts/s/f/_manifest.json", b"{}")
    assert not source.exists()
    assert store.names("artifacts/s/f") == ["_manifest.json", "part"]
    assert dict(store.walk("artifacts")) == {"artifacts/s/f/_manifest.json": 2, "artifacts/s/f/part": 5}
    store.fetch("artifacts/s/f/part", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"12345"


def test_check_accepts_a_usable_root(root):
    open_store(root).check()


@pytest.mark.parametrize("root", ["s3://", "gs://bucket/x"])
def test_a_root_of_another_kind_is_refused(root):
    with pytest.raises(InputError, match="expected a folder or s3://"):
        Store(root)


def test_a_root_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="a folder can't be made there"):
        Store(str(tmp_path / "file" / "root")).check()


def test_a_store_that_is_away_is_transient(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    with pytest.raises(StoreUnreachable, match=r"can't be reached at http://127\.0\.0\.1:9"):
        Store("s3://bucket/x").check()


def test_wrong_credentials_are_an_input_error(seaweed, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", seaweed.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody-else")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InputError, match="credentials"):
        Store(f"s3://{seaweed.bucket}/x").check()
