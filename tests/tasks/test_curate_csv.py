"""CSV, TSV and folders of texts as sources, and what a user is told of files that aren't quite."""

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import InputError
from storage.store import open_store
from tasks._sources.config import CsvConfig
from tasks._sources.files import source_files
from tasks._sources.reading import check_columns, columns_of, read_file
from tasks._sources.rows import Rejection, Row
from tasks.curate.config import CurateConfig, SourceConfig
from tasks.curate.pool import build_pool
from tasks.curate.sources import check_sources

HEADER = b"question,answer\n"


def read(path: Path, content: bytes, **layout) -> list[Row | Rejection]:
    path.write_bytes(content)
    [file] = source_files(str(path))
    return list(read_file(file, ["question"], CsvConfig(**layout)))


def fields(rows: list[Row | Rejection]) -> list[dict]:
    return [row.fields for row in rows if isinstance(row, Row)]


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)


@settings(max_examples=40, deadline=None)
@given(table=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6), tab=st.booleans())
def test_whatever_csv_writes_is_read_again(table, tab, tmp_path_factory):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t" if tab else ",", quoting=csv.QUOTE_ALL)
    writer.writerows([("question", "answer"), *table])
    path = tmp_path_factory.getbasetemp() / f"rows.{'tsv' if tab else 'csv'}"
    rows = read(path, text.getvalue().encode())
    assert fields(rows) == [{"question": question, "answer": answer} for question, answer in table]


def test_a_row_is_named_by_the_line_at_which_it_begins(tmp_path):
    content = b'question,answer\n"two\nlines",1\n\nplain,2\n'
    rows = read(tmp_path / "rows.csv", content)
    assert [(row.row, row.fields["question"]) for row in rows] == [(2, "two\nlines"), (5, "plain")]


@pytest.mark.parametrize(
    ("line", "reason", "field", "found"),
    [
        (b"only one\n", "ragged_row", None, "1 fields: ['only one']"),
        (b"one,two,three\n", "ragged_row", None, "3 fields"),
        (b'"a"b,1\n', "not_csv", None, "expected after"),
        (b"caf\xe9?,1\n", "not_utf8", "question", "byte 0xe9"),
        (b"Who?,\xff\n", "not_utf8", "answer", "byte 0xff"),
    ],
)
def test_a_bad_row_is_set_aside_and_the_next_one_is_read(tmp_path, line, reason, field, found):
    first, bad, last = read(tmp_path / "rows.csv", HEADER + b"Why?,1\n" + line + b"How?,2\n")
    assert isinstance(first, Row) and isinstance(last, Row)
    assert (bad.row, bad.reason, bad.field) == (3, reason, field)
    assert found in bad.found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"What is 2 + 3?,5\nWhat is 2 + 4?,6\n", r"no column 'question'; it has What is 2 \+ 3\?, 5.*csv\.columns"),
        (b"", "has no column 'question'"),
        (b"answer\n1\n", "has no column 'question'; it has answer"),
        (b"question,question\na,b\n", r"names \['question'\] more than once"),
        ("question,answer\na,1\n".encode("utf-16"), "its first line is not UTF-8, found byte 0xff"),
        (HEADER + b'Why?,1\n"never closed,2\nHow?,3\n', r"rows\.csv:3: a quote opens a field that never ends"),
        (b'"question"x,answer\n', "its first line is no CSV header"),
    ],
)
def test_a_file_that_can_not_be_read_stops_the_stage(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path / "rows.csv", content)


def test_a_layout_of_ones_own_and_a_byte_order_mark(tmp_path):
    layout = {"delimiter": ";", "columns": ["question", "answer"]}
    assert fields(read(tmp_path / "rows.csv", b"\xef\xbb\xbfa, b;1\n", **layout)) == [
        {"question": "a, b", "answer": "1"}
    ]
    assert fields(read(tmp_path / "rows.csv", b"\xef\xbb\xbf" + HEADER + b"a,1\n"))[0]["question"] == "a"
    with pytest.raises(ValueError, match="one character"):
        CsvConfig(delimiter="||")
    with pytest.raises(ValueError, match="every column once"):
        CsvConfig(columns=["a", "a"])


def source(path: str, **changes) -> SourceConfig:
    fields = {"path": path, "prompt_field": "question", "answer_field": "answer", "verifier": {"name": "number"}}
    return SourceConfig(**(fields | changes))


def test_csv_files_are_read_from_a_folder_and_from_s3(root):
    table = HEADER + b'"How many legs, in all, have three cats?",12\n'
    store = open_store(root)
    store.write("sources/a.csv", table)
    store.write("sources/b.csv.gz", gzip.compress(table.replace(b"three", b"five")))
    store.write(
        "sources/c.tsv", table.replace(b",12", b"\t12").replace(b",answer", b"\tanswer").replace(b"three", b"two")
    )
    for path in (f"{root}/sources", f"{root}/sources/*"):
        config = CurateConfig(sources=[source(path)], eval_prompts=0)
        check_sources(config)
        pool, rejected = build_pool(config, seed=0)
        assert rejected.is_empty()
        assert [name.removeprefix(f"{root}/sources/") for name in pool["source"]] == [
            "a.csv:2",
            "b.csv.gz:2",
            "c.tsv:2",
        ]
    files = source_files(f"{root}/sources/*")
    assert [columns_of(file) for file in files] == [["question", "answer"]] * 3
    with pytest.raises(InputError, match="no column 'prompt'"):
        check_columns(files[0], ["prompt"])


def test_a_column_names_the_domain(tmp_path):
    (tmp_path / "rows.csv").write_text("question,answer,area\nWhat is one plus one?,2,sums\nWho was first?,1,\n")
    config = CurateConfig(
        sources=[source(str(tmp_path / "rows.csv"), domain_field="area")], eval_prompts=0, max_rejected_fraction=1
    )
    pool, rejected = build_pool(config, seed=0)
    assert pool["domain"].to_list() == ["sums"]
    assert rejected.select("row", "reason", "field").rows() == [(3, "empty", "area")]


def test_every_text_of_a_folder_is_a_prompt(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "bread.v2.md").write_text("Why does bread rise?\n")
    (tmp_path / "cats.txt").write_text("Why do cats purr?")
    (tmp_path / "broken.txt").write_bytes(b"caf\xe9")
    (tmp_path / "rows.jsonl").write_text("{}")
    texts = source(str(tmp_path), format="text", prompt_field="text", answer_field="name")
    pool, rejected = build_pool(CurateConfig(sources=[texts], eval_prompts=0, max_rejected_fraction=0.5), seed=0)
    assert sorted(pool["answer"]) == ["bread", "cats"]
    assert rejected.select("reason", "field").rows() == [("not_utf8", "text")]
    with pytest.raises(InputError, match="no column 'question'; it has text, name"):
        check_sources(CurateConfig(sources=[source(str(tmp_path), format="text", answer_field=None)]))
