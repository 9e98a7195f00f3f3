"""Pairs of other people's files and logs: layouts, formats, and what is told of bad rows."""

import gzip
import json
import os
from pathlib import Path

import datasets
import polars as pl
import pytest
from graded_rollouts import context
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import InputError
from storage.records import Preference, RejectedRow
from storage.store import open_store
from tasks._sources.fields import UnusableField
from tasks.preferences.dialogues import part_chats, turns_of_dialogue
from tasks.preferences.files import check_preference_files, content_of_files, read_preferences
from tasks.preferences.files_config import PreferenceFilesConfig
from tasks.preferences.stage import import_pairs

SHARED = Path(os.environ.get("POSTTRAIN_SHARED", Path(__file__).parents[3] / "shared"))
HH = SHARED / "data" / "hh-rlhf" / "harmless.jsonl.gz"
USER = {"role": "user", "content": "What is the sea?"}
DIALOGUE = "\n\nHuman: What is the sea?\n\nAssistant: {}"
LONG = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: What is the sea?\n\nAssistant: {}"


def turn(text: str) -> dict:
    return {"role": "assistant", "content": text}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config(*sources: dict, **changes) -> PreferenceFilesConfig:
    return PreferenceFilesConfig(sources=list(sources), **({"max_rejected_fraction": 1.0} | changes))


def read(folder: Path, layout: str, rows: list[dict], **options):
    path = write(folder / "rows.jsonl", rows)
    return read_preferences(config({"layout": layout, "path": str(path), **options}), seed=0)


def said(found) -> list[tuple]:
    """(last turn of the prompt, chosen, rejected) of each pair."""
    return [
        (row["messages"][-1]["content"], row["chosen"], row["rejected"]) for row in found.pairs.iter_rows(named=True)
    ]


def only(found) -> dict:
    [row] = found.pairs.iter_rows(named=True)
    return row


# Layout -> (rows, options): each is the pair "It is salt water." over "A lake." of the prompt USER.
SAME = {
    "dialogues": ([{"chosen": DIALOGUE.format("It is salt water."), "rejected": DIALOGUE.format("A lake.")}], {}),
    "pairs": (
        [{"prompt": "What is the sea?", "chosen": "It is salt water.", "rejected": "A lake."}],
        {"prompt_field": "prompt"},
    ),
    "pairs of chats": (
        [{"chosen": [USER, turn("It is salt water.")], "rejected": [USER, turn("A lake.")]}],
        {},
    ),
    "pairs of turns": (
        [{"prompt": [USER], "chosen": [turn("It is salt water.")], "rejected": [turn("A lake.")]}],
        {"prompt_field": "prompt"},
    ),
    "pairs with a choice": (
        [{"q": "What is the sea?", "a": "A lake.", "b": "It is salt water.", "better": 1}],
        {"prompt_field": "q", "chosen_field": "a", "rejected_field": "b", "choice_field": "better"},
    ),
    "rated": (
        [
            {
                "instruction": "What is the sea?",
                "completions": [
                    {"model": "m", "response": "A lake.", "overall_score": 3.0},
                    {"model": "n", "response": "Unrated.", "overall_score": "N/A"},
                    {"model": "o", "response": "It is salt water.", "overall_score": "8.5"},
                ],
            }
        ],
        {"prompt_field": "instruction"},
    ),
    "thumbs": (
        [
            {"prompt": "What is the sea?", "answer": text, "vote": vote}
            for text, vote in (("It is salt water.", "UP"), ("A lake.", -1), ("A lake.", "down"))
        ],
        {},
    ),
    "clicks": ([{"prompt": "What is the sea?", "answers": ["A lake.", "It is salt water."], "clicked": 1}], {}),
    "edits": ([{"prompt": "What is the sea?", "answer": "A lake.", "edited": "It is salt water."}], {}),
}


@pytest.mark.parametrize("name", SAME)
def test_every_layout_says_the_same(tmp_path, name):
    rows, options = SAME[name]
    found = read(tmp_path, name.split()[0], rows, **options)
    row = only(found)
    assert row["messages"] == [USER] and (row["chosen"], row["rejected"]) == ("It is salt water.", "A lake.")
    assert json.loads(row["detail"])["from"].startswith(str(tmp_path / "rows.jsonl") + ":")
    assert not row["tie"] and not found.rejected
    assert row["source"] == {"rated": "ai", "thumbs": "click", "clicks": "click", "edits": "click"}.get(name, "human")
    assert row["annotator"] == {"thumbs": "thumbs", "clicks": "click", "edits": "edit"}.get(name)
    if name == "rated":
        assert row["strength"] == 5.5 and row["chosen_policy_id"] == "o" and row["human_score_chosen"] is None
        assert json.loads(row["detail"])["scores"] == [8.5, 3.0]


FORMATS = {
    "rows.jsonl": lambda path, rows: write(path, rows),
    "rows.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(write(path, rows).read_bytes())),
    "rows.parquet": lambda path, rows: pl.DataFrame(rows).write_parquet(path),
    "rows.csv": lambda path, rows: pl.DataFrame(rows).write_csv(path),
    "saved": lambda path, rows: datasets.Dataset.from_list(rows).save_to_disk(path),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_the_same(tmp_path, name):
    FORMATS[name](tmp_path / name, SAME["pairs"][0])
    made = config({"layout": "pairs", "prompt_field": "prompt", "path": str(tmp_path / name)})
    check_preference_files(made)
    assert said(read_preferences(made, 0)) == [("What is the sea?", "It is salt water.", "A lake.")]


def test_a_glob_is_read_here_and_on_s3_and_only_its_content_counts(root):
    for number in (1, 2):
        row = {"chosen": DIALOGUE.format(f"Right {number}."), "rejected": DIALOGUE.format("Wrong.")}
        open_store(root).write(f"given/{number}.jsonl.gz", gzip.compress(json.dumps(row).encode(), mtime=0))
    made = config({"layout": "dialogues", "path": f"{root}/given/*.jsonl.gz"})
    assert [pair[1] for pair in said(read_preferences(made, 0))] == ["Right 1.", "Right 2."]
    before = content_of_files(made)
    open_store(root).write("given/2.jsonl.gz", gzip.compress(b"{}", mtime=0))
    after = content_of_files(made)
    assert before[0][0] == after[0][0] and before[0][1] != after[0][1]


def test_a_row_keeps_what_it_knows(tmp_path):
    rows = [
        {
            "prompt": "What is the sea?",
            "a": "Water.",
            "b": "A lake.",
            "label": label,
            "how": how,
            "who": who,
            "scores": {"a": 2, "b": "6"},
            "models": {"a": "small", "b": "large"},
        }
        for label, how, who in (
            ("left", "much", "ann"),
            ("right", 0.5, "bob"),
            ("same", None, None),
            ("skip", 1, "ann"),
        )
    ]
    found = read(
        tmp_path,
        "pairs",
        rows,
        prompt_field="prompt",
        chosen_field="a",
        rejected_field="b",
        choice_field="label",
        choices={"left": "first", "right": "second", "same": "tie", "skip": "none"},
        strength_field="how",
        strengths={"much": 3},
        annotator="somebody",
        annotator_field="who",
        chosen_score_field="scores.a",
        rejected_score_field="scores.b",
        chosen_policy_field="models.a",
        rejected_policy_field="models.b",
        system="Be brief.",
        split="eval",
    )
    columns = ["chosen", "strength", "annotator", "human_score_chosen", "rejected_policy_id", "tie"]
    assert found.pairs.select(columns).rows() == [
        ("Water.", 3.0, "ann", 2.0, "large", False),
        ("A lake.", 0.5, "bob", 6.0, "small", False),
        ("Water.", 4.0, "somebody", 2.0, "large", True),
    ]
    assert found.rows_without_pair == 1 and not found.rejected
    assert found.pairs["messages"][0].to_list()[0] == {"role": "system", "content": "Be brief."}
    assert {json.loads(detail)["split"] for detail in found.pairs["detail"]} == {"eval"}


def test_a_whole_dialogue_is_its_prompt_and_the_answers(tmp_path):
    parted = "\n\nHuman: Hi\n\nAssistant: {}\n\nHuman: What?\n\nAssistant: Never mind."
    rows = [
        {"chosen": LONG.format("Water."), "rejected": LONG.format("A lake.")},
        {"chosen": parted.format("Hello."), "rejected": parted.format("Go away.")},
        {"chosen": DIALOGUE.format("One."), "rejected": DIALOGUE.format("One.")},
        {"chosen": DIALOGUE.format("One."), "rejected": DIALOGUE.format("  ")},
        {"chosen": DIALOGUE.format("One."), "rejected": "\n\nHuman: Another?\n\nAssistant: Two."},
        {"chosen": "One.", "rejected": "Two."},
    ]
    found = read(tmp_path, "dialogues", rows)
    assert said(found) == [
        ("What is the sea?", "Water.", "A lake."),
        (
            "Hi",
            "Hello.\n\nHuman: What?\n\nAssistant: Never mind.",
            "Go away.\n\nHuman: What?\n\nAssistant: Never mind.",
        ),
    ]
    assert [turn["role"] for turn in found.pairs["messages"][0]] == ["user", "assistant", "user"]
    assert [(bad.row, bad.reason, bad.field) for bad in found.rejected] == [
        (4, "empty", "rejected"),
        (5, "different_prompts", "chosen"),
        (6, "not_a_dialogue", "chosen"),
    ]
    assert found.rows_without_pair == 1


TURNS = st.lists(st.text("ab \n", min_size=1).map(str.strip).filter(bool), min_size=1, max_size=4)


@given(shared=TURNS, first=TURNS, second=TURNS)
def test_what_follows_the_prompt_is_the_answer(shared, first, second):
    def dialogue(texts):
        whole = [*shared, *texts]
        even = whole if len(whole) % 2 == 0 else [*whole, "end"]
        return "".join(f"\n\n{('Human', 'Assistant')[at % 2]}: {text}" for at, text in enumerate(even))

    chats = [turns_of_dialogue(dialogue(texts), "chosen") for texts in (first, second)]
    try:
        prompt, one, other = part_chats(*chats, "chosen")
    except UnusableField as wrong:
        assert wrong.reason == "different_prompts" and chats[0][0] != chats[1][0]
        return
    assert prompt[-1]["role"] == "user" and len(prompt) >= len(shared) - 1
    assert (one == other) == (chats[0] == chats[1])


def test_thumbs_weigh_by_their_share(tmp_path):
    votes = [("a", 1), ("a", 1), ("a", 0), ("b", 0), ("b", 0), ("c", 1), ("d", "")]
    rows = [{"prompt": "p", "answer": text, "vote": vote} for text, vote in votes]
    found = read(tmp_path, "thumbs", rows, strength=2.0, min_votes=2)
    row = only(found)
    assert (row["chosen"], row["rejected"]) == ("a", "b") and row["strength"] == pytest.approx(4 / 3)
    assert json.loads(row["detail"])["share_up"] == [pytest.approx(2 / 3), 0.0]
    assert found.rows_without_pair == 1
    assert len(read(tmp_path, "thumbs", rows, ranking={"pairs": "all", "min_margin": 0.1}).pairs) == 3


def test_clicks_are_counted_and_their_order_may_matter(tmp_path):
    shown = ["a", "b", "c"]
    places = [1, 1, 1, [0], "2", None, [0, 1]]
    rows = [{"prompt": "p", "answers": shown, "clicked": place} for place in places]
    every = read(tmp_path, "clicks", rows)
    assert {(row["chosen"], row["rejected"], row["strength"]) for row in every.pairs.iter_rows(named=True)} == {
        ("b", "a", 2.0),
        ("b", "c", 3.0),
        ("a", "c", 1.0),
    }
    above = read(tmp_path, "clicks", rows, over="above", strength=0.5)
    assert {(row["chosen"], row["rejected"], row["strength"]) for row in above.pairs.iter_rows(named=True)} == {
        ("b", "a", 1.5),
        ("c", "a", 0.5),
        ("c", "b", 0.5),
    }
    assert every.rows_without_pair == 1


BAD = [
    ("pairs", {"prompt": "p", "chosen": "a"}, {"prompt_field": "prompt"}, "missing_field", "rejected"),
    ("pairs", {"prompt": "p", "chosen": "a", "rejected": 3}, {"prompt_field": "prompt"}, "bad_type", "rejected"),
    ("pairs", {"chosen": "a", "rejected": "b"}, {}, "no_prompt", "chosen"),
    ("pairs", {"chosen": [{"role": "x"}, turn("a")], "rejected": [USER, turn("b")]}, {}, "bad_role", "chosen"),
    (
        "pairs",
        {"prompt": "p", "chosen": "a", "rejected": "b", "who": "third"},
        {"prompt_field": "prompt", "choice_field": "who"},
        "bad_choice",
        "who",
    ),
    (
        "pairs",
        {"prompt": "p", "chosen": "a", "rejected": "b", "how": "very"},
        {"prompt_field": "prompt", "strength_field": "how"},
        "bad_strength",
        "how",
    ),
    (
        "pairs",
        {"prompt": [turn("a")], "chosen": "a", "rejected": "b"},
        {"prompt_field": "prompt"},
        "not_ending_with_user",
        "prompt",
    ),
    ("rated", {"prompt": "p", "completions": {"response": "a"}}, {}, "bad_type", "completions"),
    ("rated", {"prompt": "p", "completions": ["a"]}, {}, "bad_type", "completions"),
    (
        "rated",
        {"prompt": "p", "completions": [{"response": "a", "overall_score": "good"}]},
        {},
        "bad_type",
        "overall_score",
    ),
    ("thumbs", {"prompt": "p", "answer": "a", "vote": "sideways"}, {}, "bad_vote", "vote"),
    ("clicks", {"prompt": "p", "answers": ["a", "b"], "clicked": 2}, {}, "bad_place", "clicked"),
    ("clicks", {"prompt": "p", "answers": ["a", "b"], "clicked": True}, {}, "bad_place", "clicked"),
    ("edits", {"prompt": "", "answer": "a", "edited": "b"}, {}, "empty", "prompt"),
]


@pytest.mark.parametrize(("layout", "row", "options", "reason", "field"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_row_is_set_aside_with_its_reason(tmp_path, layout, row, options, reason, field):
    path = write(tmp_path / "rows.jsonl", [row])
    good = write(tmp_path / "good.jsonl", SAME["pairs"][0])
    found = read_preferences(
        config(
            {"layout": layout, "path": str(path), **options},
            {"layout": "pairs", "path": str(good), "prompt_field": "prompt"},
        ),
        seed=0,
    )
    assert [(bad.source, bad.row, bad.reason, bad.field) for bad in found.rejected] == [(str(path), 1, reason, field)]
    assert len(found.pairs) == 1
    with pytest.raises(InputError, match=f"rows.jsonl:1, field '{field}': {reason}"):
        read_preferences(config({"layout": layout, "path": str(path), **options}, max_rejected_fraction=0.0), seed=0)


def test_what_is_wrong_with_a_whole_file_is_told_at_once(tmp_path):
    empty = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(InputError, match="no usable pair"):
        read_preferences(config({"layout": "dialogues", "path": str(empty)}), seed=0)
    other = tmp_path / "other.parquet"
    pl.DataFrame({"good": ["a"], "bad": ["b"]}).write_parquet(other)
    with pytest.raises(InputError, match=r"(?s)no column 'chosen'.*no such file"):
        check_preference_files(
            config({"layout": "dialogues", "path": str(other)}, {"layout": "clicks", "path": str(tmp_path / "none")})
        )


def test_a_repeated_pair_counts_once(tmp_path):
    found = read(tmp_path, "dialogues", SAME["dialogues"][0] * 3)
    assert len(found.pairs) == 1
    assert [(bad.row, bad.reason) for bad in found.rejected] == [(2, "exact_duplicate"), (3, "exact_duplicate")]


@pytest.mark.skipif(not HH.exists(), reason=f"needs {HH}; set POSTTRAIN_SHARED to the folder that has data/hh-rlhf")
def test_human_pairs_of_hh_rlhf(tmp_path):
    made = import_pairs.function(
        config({"layout": "dialogues", "path": str(HH)}, max_rejected_fraction=0.01),
        seed=0,
        context=context(tmp_path),
    )
    pairs, rejected = made.tables["preferences"], made.tables["rejected"]
    assert Preference.is_valid(pairs) and RejectedRow.is_valid(rejected)
    # Two of 1,802 have an empty answer.
    assert len(pairs) == 1800 and rejected["reason"].to_list() == ["empty"] * 2
    assert made.metrics["rows"] == 1800 and made.metrics["source_human"] == 1800
    assert pairs["prompt_id"].n_unique() < len(pairs)
    sides = pairs.group_by("cluster_id").agg(pl.col("split").n_unique())
    assert sides["split"].max() == 1 and 0.15 < made.metrics["eval_pairs"] / 1800 < 0.25
