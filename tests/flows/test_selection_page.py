"""deployments/selection.md: every snippet loads; and who makes the outcomes, as a run sees it."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from graded_rollouts import committed

from flows.config import parse_config
from flows.prompt_history import STEP, earlier_grades, outcomes_config
from storage.artifacts import Artifact, Outputs
from storage.campaigns import Campaign, State
from storage.commits import Attempt, Recipe, commit_outputs
from storage.errors import InputError
from tasks._stage import RunContext

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


def night(folder, name: str, stage: str, config: dict) -> Artifact:
    """An artifact of which only the configuration matters."""
    artifact = Artifact(root=str(folder / "root"), stage=stage, fingerprint=f"{stage}{name}")
    recipe = Recipe(artifact, step=stage, version=1, config=config, inputs={}, seed=None)
    commit_outputs(recipe, Attempt(datetime.now(UTC), folder), Outputs())
    return artifact


def test_stored_grades_are_read_again_where_who_makes_the_outcomes_changed(tmp_path):
    """Three nights: of the second one the verifier had other parameters."""
    root, outcomes = str(tmp_path / "root"), outcomes_of_run(1, None)
    other = [GRADERS[0], {**GRADERS[1], "params": {"strict": True}}]
    usual = {"campaign": "page", "policy": "p/1", "champion": "p/1", "champion_evaluation": "e/1"}
    for k, graders in enumerate((GRADERS, other, GRADERS), start=1):
        steps = {"rollouts": f"rollouts/r{k}", "grading": night(tmp_path, str(k), "grading", {"graders": graders}).id}
        Campaign(root, "page").commit(State(iteration=k, steps=steps, **usual))
    run = RunContext(root=root, campaign="page", iteration=4)

    def earlier(history: Artifact | None) -> list[str]:
        state = State(iteration=3, prompt_history=history.id if history else None, **usual)
        return [rollouts.id for rollouts, _ in earlier_grades(state, outcomes, run)]

    assert earlier(None) == []
    assert earlier(committed(tmp_path, "select")) == ["rollouts/r1", "rollouts/r3"], "a history of draws alone"
    assert earlier(night(tmp_path, "same", STEP, outcomes.model_dump(mode="json"))) == []
    newer = outcomes.model_copy(update={"reward_key": "another reward model"})
    assert earlier(night(tmp_path, "rewards", STEP, newer.model_dump(mode="json"))) == []
    changed = outcomes.model_copy(update={"grader_key": "another"})
    assert earlier(night(tmp_path, "grader", STEP, changed.model_dump(mode="json"))) == ["rollouts/r1", "rollouts/r3"]


def test_what_does_not_fit_is_told():
    with pytest.raises(InputError, match=r"select.history.grader: no grader is called 'verifyer'"):
        outcomes_of_run(1, None, history={"grader": "verifyer"})
    with pytest.raises(InputError, match=r"select.strategy.thompson.targt.*did you mean 'target'\?"):
        outcomes_of_run(1, None, strategy={"name": "thompson", "targt": 0.4})
