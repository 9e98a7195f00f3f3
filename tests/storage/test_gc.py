"""Collection removes what no manifest names, and nothing else."""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from storage.artifacts import MANIFEST, Artifact, Outputs
from storage.collection import collect, plan
from storage.commits import Attempt, Recipe, commit_outputs, commit_shard, read_shard
from storage.fingerprints import digest
from storage.store import open_store


def steps(value: float) -> Outputs:
    return Outputs(steps=pl.DataFrame([{"step": 0, "metric": "loss", "value": value}]))


def recipe(root: str, name: str) -> Recipe:
    artifact = Artifact(root=root, stage="policy_update", fingerprint=digest(name))
    return Recipe(artifact, "policy_update", 1, {}, {}, None)


def attempt(folder: Path) -> Attempt:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    return Attempt(datetime.now(UTC), scratch)


@pytest.fixture
def made(root: str, tmp_path: Path) -> Artifact:
    """An artifact with a file, committed; then made again by force, so that its first table is garbage."""
    work = recipe(root, "made")
    note = tmp_path / "note.txt"
    note.write_text("kept")
    commit_outputs(work, attempt(tmp_path), steps(1.0))
    outputs = steps(2.0)
    outputs.files = {"note.txt": note}
    commit_outputs(work, attempt(tmp_path), outputs, replace=True)
    return work.artifact


def paths(root: str) -> set[str]:
    return {path for path, _ in open_store(root).walk("artifacts")}


def test_only_what_the_manifest_names_stays(root, made):
    before = paths(root)
    garbage = plan(root, 0)
    assert [each.reason for each in garbage] == ["not named by the manifest"]
    assert paths(root) == before
    assert [each.path for each in collect(root, 0)] == [garbage[0].path]
    assert before - paths(root) == {garbage[0].path}
    assert made.read("steps")["value"].to_list() == [2.0]
    assert made.file("note.txt").read_text() == "kept"
    assert plan(root, 0) == []


def test_young_files_stay(root, made):
    assert plan(root, 3600) == []
    assert plan(root) == []


def test_shards_stay_until_their_stage_is_committed(root, tmp_path):
    work = recipe(root, "sharded")
    for index in range(2):
        outputs = Outputs(steps=pl.DataFrame([{"step": index, "metric": "loss", "value": 0.5}]))
        commit_shard(work, attempt(tmp_path), index, outputs)
    open_store(root).write(f"{work.artifact.folder}/steps-00001-dead.parquet", b"cut off")
    assert [(each.path.rpartition("/")[2], each.reason) for each in collect(root, 0)] == [
        ("steps-00001-dead.parquet", "left by an attempt that never committed")
    ]
    parts = [read_shard(work, index) for index in range(2)]
    commit_outputs(work, attempt(tmp_path), Outputs(), parts)
    assert {each.path.rpartition("/")[2] for each in collect(root, 0)} == {"_shard-0-00000.json", "_shard-0-00001.json"}
    assert work.artifact.read("steps")["step"].to_list() == [0, 1]


def test_temporaries_and_probes_go_and_states_stay(root, made):
    store = open_store(root)
    hexadecimal = "0123456789abcdef" * 2
    cut_off = f"campaigns/nightly/iterations/.00001.json.{hexadecimal}"
    store.write(cut_off, b"{")
    store.write(f".probe-{hexadecimal}", b"probe")
    store.write("campaigns/nightly/iterations/00000.json", b"{}")
    store.write("notes.txt", b"somebody's own")
    gone = {each.path for each in collect(root, 0)}
    assert {cut_off, f".probe-{hexadecimal}"} < gone
    assert store.exists("campaigns/nightly/iterations/00000.json") and store.exists("notes.txt")


def test_a_folder_whose_manifest_is_damaged_stays_whole(root, made):
    store = open_store(root)
    store.write(f"{made.folder}/{MANIFEST}", b"{ half of a manif")
    before = paths(root)
    assert collect(root, 0) == []
    assert paths(root) == before


def test_nothing_there_is_nothing_to_collect(root):
    assert collect(root, 0) == []
