"""Prompts that a model writes: how new they are, how its answers are read, and the stage around an engine."""

import json
import logging
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from listing_engine import ListingEngine

from storage.artifacts import Artifact
from storage.errors import InputError
from storage.fingerprints import fingerprint, hashed_part
from storage.policies import register_base
from storage.records import ExpandedPrompt, Prompt
from tasks.curate.config import CurateConfig, SourceConfig
from tasks.curate.expand import Seed, Written, expand, listed, seeds_of
from tasks.curate.expand_config import ExpandConfig
from tasks.curate.novelty import Novelty, common_subsequence, rouge_l, words_of
from tasks.curate.pool import build_pool
from tasks.curate.sources import Expanded
from tasks.curate.stage import content_of_seeds, expand_seeds

SENTENCE = st.lists(st.sampled_from("abcde"), max_size=12)
SEEDS = [
    Seed(f"Explain how a {thing} works.", f"seeds.jsonl:{row}")
    for row, thing in enumerate(
        ("clock", "boat", "lamp", "bridge", "kite", "drum", "lens", "plough", "loom", "pump"), start=1
    )
]


def by_table(left, right) -> int:
    """The textbook's dynamic programme."""
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for row, one in enumerate(left, start=1):
        for column, other in enumerate(right, start=1):
            same = table[row - 1][column - 1] + 1 if one == other else 0
            table[row][column] = max(same, table[row - 1][column], table[row][column - 1])
    return table[-1][-1]


@settings(max_examples=100, deadline=None)
@given(left=SENTENCE, right=SENTENCE)
def test_the_longest_common_subsequence_is_the_textbooks(left, right):
    assert common_subsequence(left, right) == by_table(left, right)


def test_rouge_l_of_lins_example():
    """Lin 2004, section 3.1: S2 and S3 against S1, whose F is 0.75 and 0.5 where precision and recall are equal."""
    reference, second, third = ("police killed the gunman", "police kill the gunman", "the gunman kill police")
    assert rouge_l(words_of(reference), words_of(second)) == 0.75
    assert rouge_l(words_of(reference), words_of(third)) == 0.5


@settings(max_examples=80, deadline=None)
@given(texts=st.lists(SENTENCE, min_size=1, max_size=12), query=SENTENCE, floor=st.sampled_from([1e-9, 0.3, 0.7]))
def test_the_nearest_text_is_found_without_comparing_all(texts, query, floor):
    novelty = Novelty()
    for words in texts:
        novelty.add(" ".join(words))
    scores = [rouge_l(words, query) if words and query else 0.0 for words in texts]
    best = max(scores)
    expected = (scores.index(best), best) if best >= floor else None
    assert novelty.nearest(" ".join(query), floor) == expected


@pytest.mark.parametrize(
    ("text", "items", "broken"),
    [
        ("1. First task\n2. Second task", ["First task", "Second task"], None),
        ("\n1) First\n\n2) Second\n", ["First", "Second"], None),
        ("Here are two new tasks:\n1. First", ["First"], None),
        ("9. First\n10. Second", ["First", "Second"], None),  # counts on after the eight that it was shown
        ("1. First\n3. Third", ["First"], "3. Third"),
        ("1. First\nI hope that helps!", ["First"], "I hope that helps!"),
        ("Sure!\n1. First", [], "Sure!"),
        ("One:\nTwo:\n1. First", [], "Two:"),
        ("2. Second", [], "2. Second"),
        ("", [], ""),
    ],
)
def test_only_a_numbered_list_is_read(text, items, broken):
    assert listed(text, (1, 9)) == (items, broken)


def written(count: int, start: int = 0) -> str:
    things = ("river quickly", "forest slowly", "mountain twice", "market always", "garden at night", "desert alone")
    tasks = [f"Tell me number {at} whether {things[at % 6]} {at * 31} changes" for at in range(start, start + count)]
    return "\n".join(f"{number}. {task}" for number, task in enumerate(tasks, start=1))


def config(**changes) -> ExpandConfig:
    return ExpandConfig(**({"prompts": 4, "requests_per_round": 2, "max_rounds": 3} | changes))


def test_what_is_new_is_kept_with_where_it_came_from():
    asked = []

    def ask(requests, seed):
        asked.append((requests, seed))
        first = (
            "1. Explain how a clock works\n2. Describe the taste of a ripe mango\n3. Too short\n4. Cut off in the mid"
        )
        return [Written(first, "length"), Written("1. Describe the taste of a ripe mango.\nBye", "stop")]

    made = expand(SEEDS, config(prompts=3, max_rounds=2), "f00d", 7, ask)
    assert ExpandedPrompt.is_valid(made.kept)
    assert made.kept.select("position", "text", "round", "request", "item", "policy_id").rows() == [
        (0, "Describe the taste of a ripe mango", 0, 0, 2, "f00d")
    ]
    assert made.kept["nearest"].item() in {seed.source for seed in SEEDS}
    assert len(made.kept["seeds"].item()) == 8
    assert made.requests == 4
    rejected = [(one.source, one.row, one.reason) for one in made.rejected[:5]]
    assert rejected == [
        ("expand/round-0/request-0", 4, "cut_off"),
        ("expand/round-0/request-0", 1, "not_new"),
        ("expand/round-0/request-0", 3, "too_short"),
        ("expand/round-0/request-1", 2, "not_a_list"),
        ("expand/round-0/request-1", 1, "not_new"),
    ]
    assert "ROUGE-L 1.00 with seeds.jsonl:1" in made.rejected[1].found
    assert "with expand:1" in made.rejected[4].found
    first, second = asked
    assert first[0][0].startswith("Here are 8 tasks:\n\n1. Explain how a") and "Write 4 new tasks" in first[0][0]
    assert "mango" not in "".join(first[0]) and all("ripe mango" in request for request in second[0])
    assert first[1] != second[1]


def test_the_same_seed_gives_the_same_prompts_and_it_stops_when_there_are_enough():
    def answering():
        calls = []

        def ask(requests, seed):
            calls.append(requests)
            return [Written(written(3, start=10 * len(calls) + 5 * index), "stop") for index in range(len(requests))]

        return ask, calls

    (one, first), (other, second), (third, moved) = answering(), answering(), answering()
    made = expand(SEEDS, config(max_similarity=1.0), "f00d", 3, one)
    assert len(made.kept) == 4 and len(first) == 1
    assert expand(SEEDS, config(max_similarity=1.0), "f00d", 3, other).kept.equals(made.kept)
    assert first == second
    expand(SEEDS, config(max_similarity=1.0), "f00d", 4, third)
    assert moved != first


def test_a_model_that_can_not_do_it_is_told_with_an_example():
    def ask(requests, seed):
        return [Written("I am sorry.", "stop") for _ in requests]

    with pytest.raises(InputError, match=r"6 requests gave no new prompt \(not_a_list 6\), such as .*'I am sorry\.'"):
        expand(SEEDS, config(), "f00d", 0, ask)
    with pytest.raises(InputError, match=r"all 1 seeds have more than max_words \(150\) words"):
        expand([Seed("word " * 200, "a:1")], config(), "f00d", 0, ask)


def seed_file(folder, **changes) -> SourceConfig:
    path = folder / "seeds.jsonl"
    chats = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": one.text}] for one in SEEDS]
    turns = [{"role": role, "content": "More?"} for role in ("user", "assistant", "user")]
    path.write_text("".join(json.dumps({"chat": chat}) + "\n" for chat in [*chats, turns]))
    return SourceConfig(path=str(path), messages_field="chat", verifier={"name": "haiku"}, **changes)


def test_seeds_are_prompts_of_one_turn(tmp_path):
    source = SourceConfig(expand={"prompts": 3}, verifier={"name": "haiku"})
    [expansion] = (
        CurateConfig(sources=[seed_file(tmp_path, weight=2), source.model_copy(update={"weight": 1})])
        .expansions()
        .values()
    )
    assert [seed.text for seed in seeds_of(expansion, 0)] == [seed.text for seed in SEEDS]
    assert expansion.sources[0].weight is None


def engine_config() -> dict:
    engine = {"name": "listing_engine:ListingEngine", "max_model_len": 2048}
    return {"prompts": 20, "max_rounds": 30, "requests_per_round": 3, "engine": engine}


@pytest.fixture
def expansion(tmp_path):
    source = SourceConfig(expand=engine_config(), verifier={"name": "haiku"}, domain="made", system="Be brief.")
    return CurateConfig(sources=[seed_file(tmp_path), source], eval_prompts=0)


def run_stage(config, root, model, scratch):
    context = SimpleNamespace(scratch=scratch, log=logging.getLogger("expand"), progress=lambda *_: None, iteration=0)
    writer = register_base(root, str(model))
    return expand_seeds.function(writer, config.expansions()[1], seed=5, context=context), writer


def test_the_stage_expands_through_an_engine_and_curate_takes_it(expansion, tmp_path, tiny_model):
    ListingEngine.seeds.clear()
    outputs, writer = run_stage(expansion, str(tmp_path / "root"), tiny_model, tmp_path)
    again, _ = run_stage(expansion, str(tmp_path / "root"), tiny_model, tmp_path)
    made = outputs.tables["expanded"]
    assert made.equals(again.tables["expanded"])
    assert len(made) == outputs.metrics["prompts"] == 20
    assert outputs.metrics["requests"] == 3 * len(ListingEngine.seeds) / 2
    reasons = outputs.tables["rejected"]["reason"].to_list()
    assert outputs.metrics["rejected_not_new"] == reasons.count("not_new") > 0
    assert made["policy_id"].unique().to_list() == [writer.fingerprint]
    pool, _ = build_pool(expansion, seed=0, expansions={1: Expanded("expand/abc", made)})
    assert Prompt.is_valid(pool)
    new = pool.filter(domain="made")
    assert new["source"].to_list() == [f"expand/abc:{row}" for row in range(1, 21)]
    assert new["tags"][0].to_list()[:2] == ["expanded", f"model:{writer.fingerprint}"]
    assert new["tags"][0].to_list()[2].startswith(f"seed:{tmp_path}/seeds.jsonl:")
    assert new["messages"][0].to_list()[0] == {"role": "system", "content": "Be brief."}
    with pytest.raises(InputError, match="is read from what the stage expand made"):
        build_pool(expansion, seed=0)


def test_the_model_and_the_seeds_content_are_the_fingerprint(expansion, tmp_path, tiny_model):
    def made(**changes) -> Artifact:
        config = expansion.expansions()[1]
        config = config.model_copy(update={"expand": config.expand.model_copy(update=changes)})
        root = str(tmp_path / "root")
        return expand_seeds.artifact(root, writer=register_base(root, str(tiny_model)), config=config, seed=5)

    first = made()
    assert made(model="somewhere else") == first  # where the weights lie; what they are is the writer's artifact
    assert made(temperature=0.5) != first
    before = content_of_seeds(expansion.expansions()[1])
    (tmp_path / "seeds.jsonl").write_text('{"chat": [{"role": "user", "content": "Another?"}]}\n')
    assert content_of_seeds(expansion.expansions()[1]) != before
    assert made() != first
    other = fingerprint("expand", 1, hashed_part(expansion.expansions()[1]), {"writer": "base_model/other"}, 5, before)
    assert other != first.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instruction": "Write more."}, "expected {examples} in it"),
        ({"instruction": "{examples} {count}"}, "and no other braces"),
        ({"max_tokens": 2048, "engine": {"max_model_len": 2048}}, r"expand\.max_tokens is 2048, expected less than"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"expand": {"prompts": 3, "seeds": [1]}, "verifier": {"name": "haiku"}},
            r"sources\.1\.expand\.seeds is \[1\]",
        ),
        ({"expand": {"prompts": 3}}, "a source with expand needs a verifier"),
        (
            {"expand": {"prompts": 3}, "path": "x", "verifier": {"name": "haiku"}},
            "exactly one of path, generator and expand",
        ),
    ],
)
def test_wrong_expansions_are_refused(source, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        CurateConfig.model_validate({"sources": [seed_file(tmp_path).model_dump(), source]})
