"""deployments/reward-honesty.md: its snippets load, its table is the tested one, it names each metric."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from tasks.grading.config import GradingConfig
from tasks.report.config import ReportConfig
from tasks.reward_check.config import RewardCheckConfig

PAGE = (Path(__file__).parents[2] / "deployments" / "reward-honesty.md").read_text(encoding="utf-8")
CONFIGS = {"reward_check": RewardCheckConfig, "grading": GradingConfig, "report": ReportConfig}


def test_snippets_load():
    snippets = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    loaded = {name: CONFIGS[name].model_validate(part) for each in snippets for name, part in each.items()}
    assert loaded["report"].gold in [grader.label for grader in loaded["grading"].graders]
    assert loaded["reward_check"].ensemble.how == "uwo"


def test_the_defaults_that_the_page_names():
    config = RewardCheckConfig()
    assert config.length.mitigate == "never" and config.length.min_pairs == 100
    assert (config.calibration.affine_from, config.calibration.isotonic_from, config.calibration.min_pairs) == (
        30,
        200,
        50,
    )
    assert config.level == 0.9


def test_a_soft_minimum_needs_a_strength():
    with pytest.raises(ValidationError, match="beta is above 0"):
        RewardCheckConfig.model_validate({"ensemble": {"how": "soft", "strength": 0}})
