"""Exact duplicates and the split: what must hold for any pool."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import InputError
from storage.fingerprints import fingerprint, hashed_part
from tasks._sources.fields import normalise_text
from tasks._sources.rows import Row
from tasks._sources.split import split_by_cluster
from tasks.curate.config import CurateConfig, SourceConfig
from tasks.curate.pool import build_pool
from tasks.curate.stage import content_of_sources

TOPICS = Path(__file__).parents[2] / "deployments" / "quickstart-topics.txt"
CLUSTERS = st.lists(st.integers(0, 12).map(lambda number: f"cluster-{number}"), min_size=1, max_size=60)


@given(clusters=CLUSTERS, wanted=st.integers(0, 30), seed=st.integers(0, 5))
def test_no_cluster_is_in_both_parts_and_the_split_is_not_too_large(clusters, wanted, seed):
    splits = split_by_cluster(clusters, wanted, seed)
    train = {cluster for cluster, split in zip(clusters, splits, strict=True) if split == "train"}
    held_out = {cluster for cluster, split in zip(clusters, splits, strict=True) if split == "eval"}
    assert not train & held_out
    assert splits.count("eval") <= wanted


@given(clusters=CLUSTERS, seed=st.integers(0, 5), data=st.data())
def test_the_split_does_not_depend_on_the_order_of_the_rows(clusters, seed, data):
    shuffled = data.draw(st.permutations(clusters))
    one = set(zip(clusters, split_by_cluster(clusters, 10, seed), strict=True))
    assert one == set(zip(shuffled, split_by_cluster(shuffled, 10, seed), strict=True))


def test_an_exact_duplicate_is_set_aside_and_names_the_first(tmp_path):
    path = tmp_path / "rows.jsonl"
    questions = ["Who wrote it?", "What is a quasar made of?", "  Who wrote it? "]
    path.write_text("".join(json.dumps({"q": question}) + "\n" for question in questions))
    source = SourceConfig(path=str(path), prompt_field="q", verifier={"name": "length"})
    pool, rejected = build_pool(CurateConfig(sources=[source, source], eval_prompts=0, max_rejected_fraction=0), seed=0)
    assert len(pool) == 2
    assert rejected["reason"].to_list() == ["exact_duplicate"] * 4
    assert rejected["found"][0] == f"same as {path}:1"


def test_the_same_chat_under_another_verifier_is_another_prompt_of_the_same_cluster(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"q": "Write a poem about the sea and the sky."}) + "\n")
    sources = [SourceConfig(path=str(path), prompt_field="q", verifier={"name": name}) for name in ("haiku", "length")]
    pool, _ = build_pool(CurateConfig(sources=sources, eval_prompts=0), seed=0)
    assert pool["prompt_id"].n_unique() == 2
    assert pool["cluster_id"].n_unique() == 1


def test_blanks_are_normalised_but_code_keeps_its_indentation():
    assert normalise_text("  a\r\n\r\n\r\n\r\n\tif x:\t \n    e\u0301  ") == "a\n\n\tif x:\n    é"


def test_the_quickstart_topics_give_distinct_prompts_with_a_held_out_part():
    source = SourceConfig(generator="haiku", params={"topics": str(TOPICS)})
    pool, rejected = build_pool(CurateConfig(sources=[source], eval_prompts=64), seed=0)
    assert len(pool) >= 260
    assert rejected.is_empty()
    assert pool["cluster_id"].n_unique() == len(pool)
    assert pool["split"].to_list().count("eval") == 64
    assert {verifier["name"] for verifier in pool["verifier"].to_list()} == {"haiku"}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "params.topics is None"),
        ({"topics": "gone.txt"}, "gone.txt: no such file"),
        ({"topics": str(TOPICS), "limit": 0}, "params.limit is 0"),
        ({"topics": str(TOPICS), "topic": 1}, r"unknown params \['topic'\]"),
    ],
)
def test_wrong_parameters_of_the_haiku_generator_are_named(params, message):
    config = CurateConfig(sources=[SourceConfig(generator="haiku", params=params)])
    with pytest.raises(InputError, match=message):
        build_pool(config, seed=0)


def test_an_unknown_generator_lists_those_that_exist():
    with pytest.raises(InputError, match="no generator 'limerick'; there are haiku"):
        build_pool(CurateConfig(sources=[SourceConfig(generator="limerick")]), seed=0)


def curated(generator: str, **params) -> str:
    config = CurateConfig(sources=[SourceConfig(generator=generator, params=params)])
    return fingerprint("curate", 1, hashed_part(config), {}, 0, content_of_sources(config))


def test_a_generators_paths_are_no_part_of_the_fingerprint_and_all_else_is(tmp_path):
    here, there = tmp_path / "topics.txt", tmp_path / "moved.txt"
    for path in (here, there):
        path.write_text("rain\nsnow\n")
    made = curated("haiku", topics=str(here))
    assert curated("haiku", topics=str(there)) == made
    assert curated("haiku", topics=str(here), limit=1) != made
    there.write_text("rain\nfog\n")
    assert curated("haiku", topics=str(there)) != made


@pytest.fixture
def own_generators():
    module = ModuleType("own_generators")

    class Riddles:
        DOMAIN, VERIFIER, VERSION, PATHS = "riddles", "length", "1", ()

        def rows(self, params, seed):
            yield Row("riddles", 1, {"messages": [{"role": "user", "content": "What has keys but no locks?"}]})

        def digests(self, params):
            return {}

    module.riddles, module.made = Riddles(), Riddles
    sys.modules["own_generators"] = module
    yield module
    del sys.modules["own_generators"]


def test_a_generators_new_version_is_another_fingerprint(own_generators):
    first = curated("own_generators:riddles")
    own_generators.riddles.VERSION = "2"
    assert curated("own_generators:riddles") != first


def test_a_generator_that_lacks_a_part_is_told_which(own_generators):
    own_generators.riddles.PATHS = "topics"
    with pytest.raises(InputError, match="PATHS is 'topics'; expected a tuple"):
        curated("own_generators:riddles")
    del own_generators.made.VERSION
    with pytest.raises(InputError, match="has no VERSION; a generator has DOMAIN"):
        curated("own_generators:made")


def test_a_pool_that_is_one_cluster_cannot_be_split(tmp_path):
    path = tmp_path / "rows.jsonl"
    words = "please translate the following long sentence about the weather of yesterday into plain modern english now"
    path.write_text("".join(json.dumps({"q": f"{words} {number}"}) + "\n" for number in range(4)))
    source = SourceConfig(path=str(path), prompt_field="q", verifier={"name": "length"})
    with pytest.raises(InputError, match="no prompt can be held out"):
        build_pool(CurateConfig(sources=[source], eval_prompts=2), seed=0)
    with pytest.raises(InputError, match="all 4 prompts would be held out"):
        build_pool(CurateConfig(sources=[source], eval_prompts=4), seed=0)
