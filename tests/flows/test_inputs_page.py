"""deployments/inputs.md: its files are made as it says, and every run file makes a pool of them."""

import re
import subprocess
from pathlib import Path

import polars as pl
import pytest
import yaml

from storage.records import ExpandedPrompt, Prompt
from tasks.curate.config import CurateConfig, SourceConfig
from tasks.curate.patterns import PRESETS
from tasks.curate.pool import build_pool
from tasks.curate.sources import Expanded, check_sources

PAGE = (Path(__file__).parents[2] / "deployments" / "inputs.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


SNIPPETS = [yaml.safe_load(block) for block in blocks("yaml")]
POOLS = [snippet["curate"] for snippet in SNIPPETS if "curate" in snippet]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    [commands] = blocks("sh")
    subprocess.run(["sh", "-ec", commands], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written() -> Expanded:
    row = {"position": 0, "text": "Why do cats purr at night?", "policy_id": "model", "seeds": ["chats.jsonl:1"]}
    row |= {"round": 0, "request": 0, "item": 1, "similarity": 0.2, "nearest": "chats.jsonl:1"}
    return Expanded("expand/made", pl.DataFrame([row], schema=ExpandedPrompt.create_empty().schema))


SIZES = [6, 4 + 4 + 3 + 40, 3, 3, 2]


@pytest.mark.parametrize(("section", "prompts"), list(zip(POOLS, SIZES, strict=True)))
def test_every_run_file_makes_a_pool(folder, section, prompts):
    config = CurateConfig.model_validate({"eval_prompts": 0, **section})
    check_sources(config)
    expansions = {position: written() for position in config.expansions()}
    pool, rejected = build_pool(config, seed=0, expansions=expansions)
    assert Prompt.is_valid(pool)
    assert len(pool) + len(rejected.filter(pl.col("reason") == "exact_duplicate")) == prompts
    assert not set(rejected["reason"]) & {"ragged_row", "not_csv", "missing_field"}


def test_a_source_on_its_own_is_valid():
    single = [snippet["source"] for snippet in SNIPPETS if "source" in snippet]
    assert [SourceConfig.model_validate(source).csv.delimiter for source in single] == [";"]


def test_the_page_names_every_preset():
    assert f"presets: [{', '.join(PRESETS)}]" in PAGE
