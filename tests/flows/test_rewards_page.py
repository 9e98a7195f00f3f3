"""deployments/rewards.md: every snippet is a part of a run file that loads."""

import re
from pathlib import Path

import pytest
import yaml

from flows.config import parse_config
from storage.errors import InputError

PAGE = (Path(__file__).parents[2] / "deployments" / "rewards.md").read_text(encoding="utf-8")
SNIPPETS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
GRADERS = SNIPPETS[0]["grading"]["graders"]
REST = {"campaign": "page", "model": {"path": "model"}, "curate": {"sources": [{"generator": "haiku"}]}}


def run_file(snippet: dict) -> dict:
    if "composite" in snippet:
        snippet = {"grading": {"graders": GRADERS, **snippet}}
    return REST | snippet


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_a_snippet_loads(snippet):
    config = parse_config(run_file(snippet), "page")
    assert config.grading.active(1, has_reward_model=True).graders


def test_the_page_has_a_snippet_per_family():
    steps = {
        step["step"]
        for snippet in SNIPPETS
        for step in run_file(snippet)["grading"].get("composite", {}).get("steps", [])
    }
    assert steps >= {
        "product",
        "gate",
        "threshold",
        "clip",
        "normalise",
        "soft_overlong",
        "length_penalty",
        "length_control",
    }


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            {"step": "gate", "graders": ["polit"]},
            r"composite.gate.graders: no grader is called 'polit', did you mean 'polite'\?",
        ),
        (
            {"step": "clip", "hihg": 1},
            r"unknown key 'grading.composite.steps.0.clip.hihg', did you mean 'high'\?",
        ),
        ({"step": "gat"}, r"grading.composite.steps.0.*'gat'.*'gate'"),
    ],
)
def test_what_does_not_fit_is_told_with_the_nearest_name(step, message):
    with pytest.raises(InputError, match=message):
        parse_config(REST | {"grading": {"graders": GRADERS, "composite": {"steps": [step]}}}, "page")


def test_the_filter_and_the_composite_are_checked_together():
    majority = {"filtering": {"rules": [{"rule": "majority_only"}]}, "grading": {"graders": GRADERS}}
    with pytest.raises(InputError, match="majority_only reads grader 'majority', and there is none"):
        parse_config(REST | majority, "page")
    twice = {
        "filtering": {"advantage": "per_component"},
        "grading": {"graders": GRADERS, "composite": {"missing": "hold", "steps": [{"step": "product"}]}},
    }
    with pytest.raises(InputError, match="per_component normalises"):
        parse_config(REST | twice, "page")
