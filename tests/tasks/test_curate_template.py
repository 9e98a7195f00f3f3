"""The generator `template`: its combinations, what is drawn of them, and what is wrong with its parameters."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import InputError
from storage.fingerprints import fingerprint, hashed_part
from tasks.curate import template
from tasks.curate.config import CurateConfig, SourceConfig
from tasks.curate.pool import build_pool
from tasks.curate.stage import content_of_sources

FORMS, TOPICS = ["haiku", "letter"], ["rain", "snow", "fog"]
WORDS = {"form": FORMS, "topic": TOPICS}
TEXT = "Write a {form} about {topic}, {topic} alone."


def texts(stage_seed=0, **params) -> list[str]:
    return [
        row.fields["messages"][0]["content"]
        for row in template.rows({"template": TEXT, "words": WORDS} | params, stage_seed)
    ]


def source(**params) -> SourceConfig:
    return SourceConfig(generator="template", params={"template": TEXT} | params, verifier={"name": "exact_match"})


def test_every_combination_comes_once_in_the_order_of_the_slots():
    assert texts() == [f"Write a {form} about {topic}, {topic} alone." for form, topic in product(FORMS, TOPICS)]


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), sample=st.integers(1, 60), seed=st.integers(0, 9))
def test_a_sample_is_without_replacement_and_of_the_combinations(sizes, sample, seed):
    words = {f"s{index}": [f"w{number}" for number in range(size)] for index, size in enumerate(sizes)}
    params = {"template": " ".join(f"{{{slot}}}" for slot in words), "words": words}
    every = [" ".join(chosen) for chosen in product(*words.values())]
    drawn = texts(seed, **params, sample=sample)
    assert len(drawn) == len(set(drawn)) == min(sample, len(every))
    assert [text for text in every if text in set(drawn)] == drawn
    assert texts(seed, **params, sample=sample) == drawn
    assert texts(seed + 1, **params, sample=sample, seed=seed) == drawn


def test_the_seed_decides_what_is_drawn_and_a_huge_template_costs_nothing():
    words = {slot: [f"{slot}{number}" for number in range(1000)] for slot in "abcdef"}
    params = {"template": "".join(f"{{{slot}}}" for slot in words), "words": words, "sample": 50}
    assert len(set(texts(0, **params)) | set(texts(1, **params))) == 100
    with pytest.raises(InputError, match="1,000,000,000,000,000,000 combinations, at most 10,000,000; set sample"):
        texts(**params | {"sample": None})


def test_answers_tags_and_fields_carry_the_words():
    [row] = template.rows({"template": "{a} + {b}? {{sum}}", "answer": "{a}+{b}", "words": {"a": [1], "b": [2.5]}}, 0)
    assert row.fields["messages"][0]["content"] == "1 + 2.5? {sum}"
    assert (row.fields["answer"], row.fields["tags"], row.fields["b"]) == ("1+2.5", ["a=1", "b=2.5"], "2.5")


def test_a_template_makes_prompts_whose_verifier_may_use_a_word(tmp_path):
    (tmp_path / "topics.txt").write_text("# weather\nrain\n\nsnow\nrain\n", encoding="utf-8-sig")
    params = {"template": TEXT, "words": {"form": FORMS}, "word_files": {"topic": str(tmp_path / "topics.txt")}}
    verifier = {"name": "regex", "param_fields": {"pattern": "topic"}}
    made = SourceConfig(generator="template", params=params, verifier=verifier, domain_field="form", tags=["own"])
    pool, _ = build_pool(CurateConfig(sources=[made], eval_prompts=0), seed=0)
    assert pool["source"].to_list() == [f"template:{number}" for number in (1, 2, 3, 4)]
    assert pool["verifier"].struct.field("params").to_list() == ['{"pattern": "rain"}', '{"pattern": "snow"}'] * 2
    assert pool["domain"].to_list() == ["haiku", "haiku", "letter", "letter"]
    assert pool["tags"][0].to_list() == ["own", "form=haiku", "topic=rain"]


def test_word_files_are_hashed_by_content_and_slot(tmp_path):
    def made(**files) -> str:
        paths = {slot: str(tmp_path / name) for slot, name in files.items()}
        config = CurateConfig(sources=[source(word_files=paths)])
        return fingerprint("curate", 1, hashed_part(config), {}, 0, content_of_sources(config))

    (tmp_path / "a.txt").write_text("rain\n")
    (tmp_path / "b.txt").write_text("fog\n")
    (tmp_path / "c.txt").write_text("rain\n")
    first = made(form="a.txt", topic="b.txt")
    assert made(form="c.txt", topic="b.txt") == first
    assert made(form="b.txt", topic="a.txt") != first
    (tmp_path / "b.txt").write_text("fog\nsnow\n")
    assert made(form="a.txt", topic="b.txt") != first


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"words": {"form": FORMS}}, r"slots \['form', 'topic'\], and words and word_files have \['form'\]"),
        ({"words": WORDS | {"place": ["x"]}}, r"have \['form', 'place', 'topic'\]"),
        ({"answer": "{place}"}, r"answer has the slots \['place'\], which template hasn't"),
        ({"template": "{form.__class__} {topic}"}, r"slot 'form\.__class__' is no plain name"),
        ({"template": "{form!r} {topic}"}, "is no plain name"),
        ({"template": "{form} {topic"}, "a brace that is meant as such is doubled"),
        ({"template": "{answer}", "words": {"answer": ["x"]}}, "or is one of"),
        ({"words": {"form": FORMS, "topic": [True]}}, r"words\.topic is \[True\]; expected a list of texts or numbers"),
        ({"words": {"form": FORMS, "topic": []}}, r"words\.topic is \[\]"),
        ({"sample": 0}, "sample is 0; expected a whole number from 1"),
        ({"word_files": {"topic": "gone.txt"}}, r"slots \['topic'\] have words and a file"),
        ({"words": {"form": FORMS}, "word_files": {"topic": "gone.txt"}}, "gone.txt: no such file"),
        ({"size": 3}, r"unknown params \['size'\]"),
    ],
)
def test_wrong_parameters_are_named(params, message):
    with pytest.raises(InputError, match=message):
        texts(**params)
    with pytest.raises(InputError, match=message):
        template.digests({"template": TEXT, "words": WORDS} | params)


def test_a_file_of_words_that_is_none_is_named(tmp_path):
    path = tmp_path / "topics.txt"
    path.write_bytes(b"rain\ncaf\xe9\n")
    params = {"words": {"form": FORMS}, "word_files": {"topic": str(path)}}
    with pytest.raises(InputError, match=r"topics\.txt:2: byte 0xe9 is not UTF-8"):
        texts(**params)
    path.write_text("# nothing\n")
    with pytest.raises(InputError, match="holds no word"):
        texts(**params)


def test_only_the_source_can_say_how_a_template_is_verified():
    with pytest.raises(ValueError, match="a source with generator 'template' needs a verifier"):
        SourceConfig(generator="template", params={"template": TEXT, "words": WORDS})
