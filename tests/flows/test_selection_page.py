"""deployments/selection.md: every snippet loads; and who makes the outcomes, as a run sees it."""

import re
from pathlib import Path

import pytest
import yaml

from flows.config import parse_config
from flows.prompt_history import outcomes_config
from storage.artifacts import Artifact
from storage.errors import InputError

PAGE = (Path(__file__).parents[2] / "deployments" / "selection.md").read_text(encoding="utf-8")
SNIPPETS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
GRADERS = [{"grader": "reward_model", "weight": 0.2, "from_iteration": 2}, {"grader": "verifier", "weight": 0.8}]
REST = {
    "campaign": "page",
    "model": {"path": "model"},
    "curate": {"sources": [{"generator": "haiku"}]},
    "grading": {"graders": GRADERS},
}


def outcomes_of_run(iteration: int, reward_model: str | None, graders=GRADERS, **select):
    config = parse_config({**REST, "grading": {"graders": graders}, "select": select}, "page")
    trained = Artifact(root="root", stage="reward_model", fingerprint=reward_model) if reward_model else None
    active = config.grading.active(iteration, trained is not None)
    return outcomes_config(config.select, config.grading, active, trained)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_a_snippet_loads(snippet):
    assert parse_config(REST | snippet, "page").select


def test_the_page_names_every_strategy():
    named = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert named == {"uniform", "thompson", "variance", "band", "greso"}


def test_a_reward_model_changes_who_makes_rewards_but_not_verdicts():
    without, first, second = (outcomes_of_run(k, model) for k, model in ((1, None), (2, "m1"), (3, "m2")))
    assert without.grader == "verifier", "the reward model is never the default"
    assert without.grader_key == first.grader_key == second.grader_key
    assert len({without.reward_key, first.reward_key, second.reward_key}) == 3
    assert outcomes_of_run(5, "m2") == second, "the iteration is no part"


def test_weights_change_rewards_and_parameters_change_verdicts():
    plain = outcomes_of_run(1, None)
    weighed = outcomes_of_run(1, None, [GRADERS[0], {**GRADERS[1], "weight": 0.5, "timeout_s": 3.0}])
    assert weighed.grader_key == plain.grader_key and weighed.reward_key != plain.reward_key
    other = outcomes_of_run(1, None, [GRADERS[0], {**GRADERS[1], "params": {"strict": True}}])
    assert other.grader_key != plain.grader_key


def test_what_does_not_fit_is_told():
    with pytest.raises(InputError, match=r"select.history.grader: no grader is called 'verifyer'"):
        outcomes_of_run(1, None, history={"grader": "verifyer"})
    with pytest.raises(InputError, match=r"select.strategy.thompson.targt.*did you mean 'target'\?"):
        outcomes_of_run(1, None, strategy={"name": "thompson", "targt": 0.4})
