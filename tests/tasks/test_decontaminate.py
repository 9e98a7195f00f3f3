"""Decontamination: what repeats an evaluation set is set aside, with the set, its row and the words."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import InputError
from tasks._maths.words import hashed_words, words_of
from tasks.curate.config import CurateConfig, SourceConfig
from tasks.curate.decontaminate import check_sets, read_set
from tasks.curate.dedup_config import EvaluationSetConfig
from tasks.curate.pool import build_pool
from tasks.curate.stage import content_of_sources

NATALIA = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips did "
    "Natalia sell altogether in April and May?"
)
WENG = (
    "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. How much did she earn?"
)
OWN = "Write one paragraph about the history of the harbour, with three dates and the name of its first mayor."


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def known(tmp_path):
    path = write(tmp_path / "test.jsonl", [{"question": NATALIA}, {"question": WENG}, {"question": "What is 2+2?"}])

    def config(n: int = 13, **changes) -> EvaluationSetConfig:
        return EvaluationSetConfig(**({"name": "gsm8k", "path": str(path), "field": "question", "n": n} | changes))

    return config


def overlaps(config: EvaluationSetConfig, *texts: str) -> dict[int, str]:
    return {each.text: each.found for each in read_set(config).overlaps(texts, hashed_words(texts))}


def test_a_prompt_that_quotes_thirteen_words_is_found_with_set_row_and_words(known):
    quote = "and then she sold half as many clips in May. How many clips"
    assert len(words_of(quote)) == 13
    texts = [OWN, f"Here is a story: {quote.upper()}!", f"Here is a story: {quote.removesuffix(' clips')} pens"]
    assert overlaps(known(), *texts) == {
        1: "gsm8k row 1, 13 words: and then she sold half as many clips in may how many clips"
    }


def test_fewer_words_find_more_and_the_longest_run_is_shown(known):
    text = "She sold half as many clips in May. And: yesterday, she just did 50 minutes of babysitting. How much? none"
    assert overlaps(known(), text) == {}
    assert overlaps(known(8), text) == {
        0: "gsm8k row 2, 10 words: yesterday she just did 50 minutes of babysitting how much"
    }


def test_a_short_text_is_found_as_a_whole_prompt_alone(known):
    texts = ["what is 2 + 2", "What is 2+2? And what is 3+3?", "What is 2+3?"]
    assert overlaps(known(), *texts) == {0: "gsm8k row 3, 4 words: what is 2 2"}


TEXTS = st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=9).map(" ".join), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(kept=TEXTS, prompts=TEXTS, n=st.integers(1, 5))
def test_overlap_is_a_shared_run_of_n_words_or_an_equal_short_text(tmp_path_factory, kept, prompts, n):
    path = write(tmp_path_factory.mktemp("set") / "set.jsonl", [{"text": text} for text in kept])
    found = overlaps(EvaluationSetConfig(name="s", path=str(path), field="text", n=n), *prompts)

    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[at : at + n]) for at in range(len(words) - n + 1)} or {tuple(words)}

    expected = {index for index, text in enumerate(prompts) if any(runs(text) & runs(other) for other in kept)}
    assert set(found) == expected
    for index, shown in found.items():
        repeated = shown.split(": ")[1]
        row = int(shown.split("row ")[1].split(",")[0])
        assert f" {repeated} " in f" {prompts[index]} "
        assert runs(repeated) & runs(kept[row - 1])


def test_contaminated_prompts_are_set_aside_without_counting_as_bad_rows(tmp_path, known):
    path = write(
        tmp_path / "rows.jsonl", [{"q": text} for text in (OWN, NATALIA, WENG.replace("50", "40"), OWN + " Go.")]
    )
    source = SourceConfig(path=str(path), prompt_field="q", verifier={"name": "length"})
    pool, rejected = build_pool(
        CurateConfig(sources=[source], decontaminate=[known(8)], eval_prompts=0, max_rejected_fraction=0), seed=0
    )
    assert [messages[0]["content"] for messages in pool["messages"].to_list()] == [OWN, OWN + " Go."]
    assert rejected["reason"].to_list() == ["contaminated"] * 2
    assert rejected["source"].to_list() == [f"{path}:2", f"{path}:3"]
    assert rejected["found"][0].startswith("gsm8k row 1, 31 words: natalia sold clips to 48")
    assert rejected["found"][1].startswith("gsm8k row 2, ")


def test_the_first_set_that_is_repeated_is_named(tmp_path, known):
    path = write(tmp_path / "rows.jsonl", [{"q": NATALIA}])
    source = SourceConfig(path=str(path), prompt_field="q", verifier={"name": "length"})
    rows = [{"q": OWN}, *[{"q": f"{number} {OWN}"} for number in range(3)]]
    rest = SourceConfig(path=str(write(tmp_path / "rest.jsonl", rows)), prompt_field="q", verifier={"name": "length"})
    sets = [known(name="mirror"), known()]
    _, rejected = build_pool(CurateConfig(sources=[source, rest], decontaminate=sets, eval_prompts=0), seed=0)
    assert [found.split(" row")[0] for found in rejected["found"].to_list()] == ["mirror"]


def test_a_set_of_chats_is_read_without_its_system_messages(tmp_path, known):
    chat = [{"role": "system", "content": OWN}, {"role": "user", "content": NATALIA}]
    path = write(tmp_path / "chats.jsonl", [{"messages": chat}])
    assert list(overlaps(known(path=str(path), field="messages"), OWN, NATALIA)) == [1]


def test_a_set_that_cannot_be_used_is_named_with_what_to_do(tmp_path, known):
    with pytest.raises(InputError, match="has no column 'prompt'"):
        check_sets([known(field="prompt")])
    with pytest.raises(InputError, match=r"gone\.jsonl: no such file"):
        check_sets([known(path="gone.jsonl")])
    numbers = write(tmp_path / "numbers.jsonl", [{"question": 3}])
    with pytest.raises(InputError, match=r"evaluation set 'gsm8k'.*numbers.jsonl:1.*expected a string"):
        read_set(known(path=str(numbers)))
    empty = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(InputError, match="'gsm8k' has no row"):
        read_set(known(path=str(empty)))


def test_the_content_of_a_set_is_part_of_the_fingerprint_and_its_path_is_not(tmp_path, known):
    def content(*sets):
        config = CurateConfig(
            sources=[{"path": known().path, "prompt_field": "question", "verifier": {"name": "length"}}],
            decontaminate=list(sets),
        )
        return content_of_sources(config)["sets"]

    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(Path(known().path).read_bytes())
    assert content(known()) == content(known(path=str(moved))) != content()
    moved.write_text(json.dumps({"question": OWN}) + "\n")
    assert content(known()) != content(known(path=str(moved)))
