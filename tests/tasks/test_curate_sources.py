"""Reading prompts from real files of every format, and what a user is told when one of them is wrong."""

import gzip
import json
from pathlib import Path

import datasets
import polars as pl
import pytest

from storage.errors import InputError, StoreUnreachable
from storage.records import Prompt, RejectedRow
from storage.store import open_store
from tasks.curate.config import CurateConfig, SourceConfig
from tasks.curate.pool import build_pool
from tasks.curate.sources import check_sources, source_content
from tasks.curate.stage import content_of_sources

QUESTIONS = [f"What is {a} times {b + 20}, and how did you find the {a}th result?" for a in range(6) for b in (1, 50)]


def source(path: Path | str, **changes) -> SourceConfig:
    fields = {"path": str(path), "prompt_field": "question", "answer_field": "answer", "verifier": {"name": "number"}}
    return SourceConfig(**(fields | changes))


def config(*sources: SourceConfig, **changes) -> CurateConfig:
    return CurateConfig(sources=list(sources), **({"eval_prompts": 0} | changes))


def rows() -> list[dict]:
    return [{"question": question, "answer": str(index)} for index, question in enumerate(QUESTIONS)]


def write_jsonl(path: Path, lines: list) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def write_parquet(path: Path) -> Path:
    pl.DataFrame(rows()).write_parquet(path)
    return path


def write_gzip(path: Path) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows())
    return path


def write_dataset(path: Path) -> Path:
    datasets.Dataset.from_list(rows()).save_to_disk(path, num_shards=2)
    return path


FORMATS = {
    "rows.jsonl": lambda path: write_jsonl(path, rows()),
    "rows.json.gz": write_gzip,
    "rows.parquet": write_parquet,
    "saved": write_dataset,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_prompts(tmp_path, name):
    pool, rejected = build_pool(config(source(FORMATS[name](tmp_path / name))), seed=0)
    assert Prompt.is_valid(pool)
    assert rejected.is_empty()
    assert [messages[0]["content"] for messages in pool["messages"].to_list()] == QUESTIONS
    assert pool["answer"].to_list() == [str(index) for index in range(len(QUESTIONS))]
    assert pool["source"][0].startswith(str(tmp_path / name)) and pool["source"][0].endswith(":1")


def test_the_same_files_are_read_from_a_folder_and_from_s3(root, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    for name, write in FORMATS.items():
        write(here / name)
    for path in (path for path in here.rglob("*") if path.is_file()):
        open_store(root).write(f"sources/{path.relative_to(here)}", path.read_bytes())
    for name in FORMATS:
        there = config(source(f"{root}/sources/{name}"))
        check_sources(there)
        pool, _ = build_pool(there, seed=0)
        assert pool["answer"].to_list() == [str(index) for index in range(len(QUESTIONS))], name
        assert pool["source"][0].startswith(f"{root}/sources/{name}")
    globbed, _ = build_pool(config(source(f"{root}/sources/*.jsonl")), seed=0)
    assert globbed["source"][1] == f"{root}/sources/rows.jsonl:2"
    with pytest.raises(InputError, match=r"gone\.parquet: no such file"):
        check_sources(config(source(f"{root}/sources/gone.parquet")))
    with pytest.raises(InputError, match="has no column 'prompt'; it has"):
        check_sources(config(source(f"{root}/sources/rows.parquet", prompt_field="prompt")))


def test_an_s3_source_is_known_by_its_content_and_needs_credentials(seaweed, monkeypatch):
    values = {"ENDPOINT_URL": seaweed.endpoint_url, "ACCESS_KEY_ID": seaweed.access_key}
    for name, value in (values | {"SECRET_ACCESS_KEY": seaweed.secret_key}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    root = seaweed.fresh_prefix()
    one = source(f"{root}/rows.jsonl", answer_field=None)
    there = config(one)
    digests = []
    for text in ("Who?", "Who?", "Why?"):
        open_store(root).write("rows.jsonl", json.dumps({"question": text}).encode())
        digests.append(source_content(one))
    assert digests[0] == digests[1] != digests[2]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InputError, match="not allowed to read it"):
        check_sources(there)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreUnreachable, match="can't be reached"):
        check_sources(there)


def test_folders_and_globs_are_read_in_order(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", rows()[2:])
    write_jsonl(tmp_path / "a.jsonl", rows()[:2])
    (tmp_path / "notes.txt").write_text("not a source")
    whole, _ = build_pool(config(source(tmp_path)), seed=0)
    globbed, _ = build_pool(config(source(tmp_path / "*.jsonl")), seed=0)
    assert whole["answer"].to_list() == globbed["answer"].to_list() == [str(index) for index in range(len(QUESTIONS))]
    assert whole["source"].to_list() == globbed["source"].to_list()


def test_every_kind_of_bad_row_is_set_aside_with_its_reason(tmp_path):
    path = tmp_path / "chats.jsonl"
    good = {"messages": [{"role": "user", "content": "Name the largest planet of the solar system."}]}
    bad = {
        "not_utf8": b'{"messages": "\xff"}',
        "not_json": b'{"messages": ',
        "bad_type": b'{"messages": "a string"}',
        "missing_field": b'{"chat": []}',
        "empty": b'{"messages": []}',
        "bad_role": b'{"messages": [{"role": "wizard", "content": "hm"}]}',
        "no_user_turn": b'{"messages": [{"role": "system", "content": "Be brief."}]}',
        "not_ending_with_user": json.dumps(
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
        ).encode(),
    }
    path.write_bytes(b"\n".join([json.dumps(good).encode(), *bad.values()]) + b"\n")
    chats = SourceConfig(path=str(path), messages_field="messages", verifier={"name": "length"})
    pool, rejected = build_pool(config(chats, max_rejected_fraction=0.9), seed=0)
    assert len(pool) == 1
    assert RejectedRow.is_valid(rejected)
    assert rejected["reason"].to_list() == list(bad)
    assert rejected["row"].to_list() == list(range(2, 10))
    assert "0xff" in rejected["found"][0]
    assert rejected.filter(reason="missing_field")["field"].to_list() == ["messages"]


def test_too_many_bad_rows_stop_the_stage_and_say_which(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [*rows()[:4], {"question": 5, "answer": "1"}])
    with pytest.raises(InputError, match=r"1 of 5 rows are bad \(bad_type 1\)(.|\n)*rows.jsonl:5, field 'question'"):
        build_pool(config(source(path)), seed=0)


def test_text_in_parquet_that_is_not_utf8_is_one_bad_row(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    words = [question.encode() for question in QUESTIONS]
    words[3] = b"caf\xe9 or tea?"
    column = pa.array(words, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"question": column}), tmp_path / "rows.parquet")
    pool, rejected = build_pool(config(source(tmp_path / "rows.parquet", answer_field=None)), seed=0)
    assert len(pool) == len(QUESTIONS) - 1
    assert rejected.select("row", "reason").rows() == [(4, "not_utf8")]


def test_a_missing_column_lists_those_that_exist(tmp_path):
    parquet = source(write_parquet(tmp_path / "rows.parquet"), prompt_field="prompt")
    jsonl = source(write_jsonl(tmp_path / "rows.jsonl", rows()), answer_field="solution")
    gone = source(tmp_path / "gone.parquet")
    with pytest.raises(InputError) as caught:
        check_sources(config(parquet, jsonl, gone))
    first, second, third = str(caught.value).splitlines()
    assert "rows.parquet: has no column 'prompt'; it has question, answer" in first or "answer, question" in first
    assert "rows.jsonl" in second and "'solution'" in second
    assert "gone.parquet: no such file" in third
    with pytest.raises(InputError, match="has no column 'prompt'"):
        build_pool(config(parquet), seed=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.parquet", b"PAR1 and then nothing", "not a readable parquet file"),
        ("rows.jsonl.gz", b"not gzip", "not a readable jsonl file"),
        ("rows.jsonl", b'[{"question": "a"}]', "holds a JSON array; expected JSON Lines"),
        ("rows.xlsx", b"question\n", "can't tell its format"),
        ("rows.jsonl", b"", "the prompt set is empty"),
    ],
)
def test_a_file_that_is_no_source_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        build_pool(config(source(tmp_path / name)), seed=0)


def test_a_dataset_dict_names_its_splits(tmp_path):
    part = datasets.Dataset.from_list(rows())
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "both")
    with pytest.raises(InputError, match=r"both/train"):
        check_sources(config(source(tmp_path / "both")))
    pool, _ = build_pool(config(source(tmp_path / "both" / "train")), seed=0)
    assert len(pool) == len(QUESTIONS)


def test_digests_follow_the_content_not_the_path(tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", rows())
    same = write_jsonl(tmp_path / "same.jsonl", rows())
    other = write_jsonl(tmp_path / "other.jsonl", rows()[1:])
    assert source_content(source(one)) == source_content(source(same)) != source_content(source(other))


def test_which_source_a_file_belongs_to_is_part_of_the_content(tmp_path):
    """A file that moves from one source's folder to the next one's gets that one's verifier and domain."""
    left, right = tmp_path / "left", tmp_path / "right"
    for folder in (left, right):
        folder.mkdir()
        write_jsonl(folder / "m.jsonl", rows()[: 2 if folder == left else 4])
    write_jsonl(left / "n.jsonl", rows()[5:])
    sources = config(source(left), source(right, domain="other"))
    before = content_of_sources(sources)
    (left / "n.jsonl").rename(right / "a.jsonl")
    assert content_of_sources(sources) != before


def test_a_system_message_is_added_where_there_is_none(tmp_path):
    own = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "How do magnets work?"}]
    lines = [{"chat": own}, {"chat": [{"role": "user", "content": "Why is the sky blue?"}]}]
    path = write_jsonl(tmp_path / "chats.jsonl", lines)
    chats = SourceConfig(path=str(path), messages_field="chat", system="Be brief.", verifier={"name": "length"})
    pool, _ = build_pool(config(chats), seed=0)
    assert [messages[0]["content"] for messages in pool["messages"].to_list()] == ["Be kind.", "Be brief."]
