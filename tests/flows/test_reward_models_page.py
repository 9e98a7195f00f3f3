"""deployments/reward-models.md: every snippet is a part of a run file that loads, and every loss is told of."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from flows.config import parse_config
from tasks._maths.ensembles import AGGREGATES
from tasks.reward_model.config import RewardModelConfig

PAGE = (Path(__file__).parents[2] / "deployments" / "reward-models.md").read_text(encoding="utf-8")
SNIPPETS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
REST = {
    "campaign": "page",
    "model": {"path": "model"},
    "curate": {"sources": [{"generator": "haiku"}]},
    "grading": {"graders": [{"grader": "verifier"}]},
}


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_a_snippet_loads(snippet):
    assert parse_config(REST | snippet, "page").reward_model.members >= 1


def test_losses_and_aggregates_are_told_of():
    losses = get_args(RewardModelConfig.model_fields["loss"].annotation)
    assert {f"`{name}`" for name in (*losses, *AGGREGATES)} <= set(re.findall(r"^\| (`\w+`)", PAGE, re.MULTILINE))
