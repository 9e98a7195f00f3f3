"""Artifacts on both kinds of root: what was written is read, what changed is noticed."""

from datetime import UTC, datetime

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.artifacts import Artifact, Outputs
from storage.commits import Attempt, Recipe, commit_outputs, commit_shard, committed, read_shard
from storage.errors import CorruptArtifact, InputError, StageFailed
from storage.fingerprints import derive_seed, fingerprint
from storage.store import open_store

FINGERPRINT = "0" * 32


def ledger(ids):
    return pl.DataFrame(
        {"rollout_id": ids, "kept": True, "rule": "kept", "value": None, "threshold": 0.5},
        schema={
            "rollout_id": pl.String,
            "kept": pl.Boolean,
            "rule": pl.String,
            "value": pl.Float64,
            "threshold": pl.Float64,
        },
    )


def recipe(root, fingerprint=FINGERPRINT, step="filtering"):
    artifact = Artifact(root=root, stage="filtering", fingerprint=fingerprint)
    return Recipe(artifact, step=step, version=1, config={"a": 1}, inputs={"rollouts": "rollouts/x"}, seed=3)


def attempt(tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir(exist_ok=True)
    return Attempt(datetime.now(UTC), folder)


def test_round_trip_with_files_and_metrics(root, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<p>")
    made = recipe(root)
    outputs = Outputs(metrics={"kept": 2.0}, files={"page.html": page}, ledger=ledger(["a", "b"]))
    manifest = commit_outputs(made, attempt(tmp_path), outputs)
    again = Artifact.at(root, made.artifact.id)
    assert again.exists()
    assert again.read("ledger")["rollout_id"].to_list() == ["a", "b"]
    assert again.file("page.html").read_text() == "<p>"
    assert again.metrics == {"kept": 2.0}
    assert again.manifest == manifest
    assert again.manifest.inputs == {"rollouts": "rollouts/x"}


def test_an_artifact_exists_only_with_its_manifest(root, tmp_path):
    made = recipe(root)
    assert committed(made.artifact) is None
    commit_shard(made, attempt(tmp_path), 0, Outputs(ledger=ledger(["a"])))
    assert not made.artifact.exists()
    with pytest.raises(InputError, match="not found below"):
        _ = made.artifact.manifest


def test_of_two_writers_the_first_stands(root, tmp_path):
    made = recipe(root)
    first = commit_outputs(made, attempt(tmp_path), Outputs(ledger=ledger(["a"])))
    second = commit_outputs(made, attempt(tmp_path), Outputs(ledger=ledger(["b"])))
    assert second == first
    assert made.artifact.read("ledger")["rollout_id"].to_list() == ["a"]


def test_a_forced_commit_replaces(root, tmp_path):
    made = recipe(root)
    commit_outputs(made, attempt(tmp_path), Outputs(ledger=ledger(["a"])))
    commit_outputs(made, attempt(tmp_path), Outputs(ledger=ledger(["b"])), replace=True)
    assert Artifact.at(root, made.artifact.id).read("ledger")["rollout_id"].to_list() == ["b"]


def test_a_changed_byte_is_named(root, tmp_path):
    made = recipe(root)
    manifest = commit_outputs(made, attempt(tmp_path), Outputs(ledger=ledger(["a"])))
    file = manifest.tables["ledger"].files[0]
    store, path = open_store(root), f"{made.artifact.folder}/{file.name}"
    content = bytearray(store.read(path))
    content[len(content) // 2] ^= 1
    store.write(path, bytes(content))
    with pytest.raises(CorruptArtifact, match=rf"{file.name}: SHA-256 expected {file.sha256}, found "):
        made.artifact.read("ledger")


def test_a_lost_file_is_named(root, tmp_path):
    made = recipe(root)
    manifest = commit_outputs(made, attempt(tmp_path), Outputs(ledger=ledger(["a"])))
    name = manifest.tables["ledger"].files[0].name
    open_store(root).remove(f"{made.artifact.folder}/{name}")
    with pytest.raises(CorruptArtifact, match=f"{name}: expected by its manifest, not found"):
        made.artifact.read("ledger")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(["rule"]), "column 'rule' of record 'ledger': expected large_string, found no such column"),
        (
            lambda t: t.set_column(1, "kept", t["kept"].cast("int32")),
            "column 'kept' of record 'ledger': expected bool, found int32",
        ),
    ],
)
def test_another_schema_is_named(root, tmp_path, change, message):
    made = recipe(root)
    manifest = commit_outputs(made, attempt(tmp_path), Outputs(ledger=ledger(["a"])))
    entry = manifest.tables["ledger"].files[0]
    store, path = open_store(root), f"{made.artifact.folder}/{entry.name}"
    store.fetch(path, tmp_path / "old.parquet")
    pq.write_table(change(pq.read_table(tmp_path / "old.parquet")), tmp_path / "new.parquet")
    from storage.reader import sha256_of

    entry.sha256 = sha256_of(tmp_path / "new.parquet")
    store.write(path, (tmp_path / "new.parquet").read_bytes())
    store.write(f"{made.artifact.folder}/_manifest.json", manifest.model_dump_json().encode())
    with pytest.raises(CorruptArtifact, match=message):
        Artifact.at(root, made.artifact.id).read("ledger")


def test_rows_that_break_a_rule_are_not_written(root, tmp_path):
    bad = ledger(["a", ""])
    with pytest.raises(StageFailed, match="1 of 2 rows break its rules"):
        commit_outputs(recipe(root), attempt(tmp_path), Outputs(ledger=bad))
    with pytest.raises(StageFailed, match="missing column"):
        commit_outputs(recipe(root), attempt(tmp_path), Outputs(ledger=bad.drop("rule")))


def test_shards_join_in_order_and_a_key_occurs_once(root, tmp_path):
    made = recipe(root)
    commit_shard(made, attempt(tmp_path), 1, Outputs(ledger=ledger(["c"])))
    commit_shard(made, attempt(tmp_path), 0, Outputs(ledger=ledger(["a", "b"])))
    shards = [read_shard(made, 0), read_shard(made, 1)]
    manifest = commit_outputs(made, attempt(tmp_path), Outputs(), shards)
    assert made.artifact.read("ledger")["rollout_id"].to_list() == ["a", "b", "c"]
    assert manifest.tables["ledger"].rows == 3

    doubled = recipe(root, fingerprint="1" * 32)
    commit_shard(doubled, attempt(tmp_path), 0, Outputs(ledger=ledger(["a"])))
    commit_shard(doubled, attempt(tmp_path), 1, Outputs(ledger=ledger(["a"])))
    shards = [read_shard(doubled, 0), read_shard(doubled, 1)]
    with pytest.raises(StageFailed, match="occurs twice over its frames or the shards"):
        commit_outputs(doubled, attempt(tmp_path), Outputs(), shards)


def test_the_parquet_field_holds_the_unit(tmp_path):
    from storage.writer import arrow_schema

    assert arrow_schema("rollouts").field("logprobs").metadata[b"unit"] == b"nat"
    assert str(arrow_schema("rollouts").field("token_ids").type) == "large_list<item: int32>"


identifiers = st.lists(st.text("abc", min_size=1, max_size=4), unique=True, max_size=6)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=identifiers, values=st.floats(-1e100, 1e100))
def test_equal_rows_have_equal_content_and_others_dont(tmp_path_factory, ids, values):
    tmp_path = tmp_path_factory.mktemp("content")
    frame = ledger(ids).with_columns(value=pl.lit(values))
    contents = []
    for n, rows in enumerate([frame, frame, frame.with_columns(value=pl.lit(values + 1.0 + abs(values)))]):
        made = recipe(str(tmp_path / "root"), fingerprint=str(n) * 32)
        contents.append(commit_outputs(made, attempt(tmp_path), Outputs(ledger=rows)).content)
        assert made.artifact.read("ledger").equals(rows)
    assert contents[0] == contents[1]
    assert (contents[0] == contents[2]) == (not ids)


keys = st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4), max_size=4)


@given(
    config=keys,
    seed=st.integers(0, 2**31),
    inputs=st.dictionaries(st.text("ab", min_size=1), st.text("cd"), max_size=3),
)
def test_a_fingerprint_follows_from_what_goes_in_and_nothing_else(config, seed, inputs):
    reference = fingerprint("s", 1, config, inputs, seed)
    assert reference == fingerprint("s", 1, dict(reversed(config.items())), inputs, seed)
    assert reference != fingerprint("s", 2, config, inputs, seed)
    assert reference != fingerprint("t", 1, config, inputs, seed)
    assert reference != fingerprint("s", 1, config, inputs, seed + 1)
    assert reference != fingerprint("s", 1, config, {**inputs, "new": "x"}, seed)
    assert reference != fingerprint("s", 1, {**config, "other": 1, "more": 2}, inputs, seed)


@given(seed=st.integers(0, 2**31), k=st.integers(0, 100))
def test_derived_seeds_differ_by_label(seed, k):
    assert derive_seed(seed, k, "a") == derive_seed(seed, k, "a") < 2**31
    assert derive_seed(seed, k, "a") != derive_seed(seed, k, "b")
