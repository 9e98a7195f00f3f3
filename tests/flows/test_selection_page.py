"""deployments/selection.md: every snippet loads; and who makes the outcomes, as a run sees it."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from graded_rollouts import committed

from flows.config import parse_config
from flows.prompt_history import STEP, earlier_grades, outcomes_config
from flows.reward_models import InCharge
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


def outcomes_of_run(iteration: int, reward_model: str | None, graders=GRADERS, judge_model=None, **select):
    config = parse_config({**REST, "grading": {"graders": graders}, "select": select}, "page")
    trained = artifact("reward_model", reward_model) if reward_model else None
    active = config.grading.active(iteration, trained is not None)
    models = {} if judge_model is None else {label: artifact("policy", judge_model) for label in active.local_models}
    return outcomes_config(config.select, config.grading, active, InCharge(trained, None), models)


def artifact(stage: str, name: str) -> Artifact:
    return Artifact(root="root", stage=stage, fingerprint=name)


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


JUDGE = {
    "grader": "rubric",
    "from_iteration": 1,
    "judging": {"local": {"model": "champion"}, "criteria": [{"criterion": "is short"}]},
}
JUDGED = [*GRADERS, JUDGE]


def test_another_champion_makes_other_rewards_and_as_the_grader_other_verdicts():
    beside = [outcomes_of_run(1, None, JUDGED, champion) for champion in ("c1", "c2", "c1")]
    assert len({outcomes.reward_key for outcomes in beside}) == 2
    assert len({outcomes.grader_key for outcomes in beside}) == 1, "the verifier counts, whoever judges beside it"
    counting = [outcomes_of_run(1, None, JUDGED, champion, history={"grader": "rubric"}) for champion in ("c1", "c2")]
    assert len({outcomes.grader_key for outcomes in counting}) == 2


def test_stored_grades_of_a_judge_are_read_again_where_the_same_model_judged(tmp_path):
    root = str(tmp_path / "root")
    usual = {"campaign": "page", "policy": "p/1", "champion": "p/1", "champion_evaluation": "e/1"}
    inputs = [{"judge_models.rubric": "policy/c1"}, {"judge_models.rubric": "policy/c2"}, {"parts.0": "grading/x"}]
    for k, made_of in enumerate(inputs, start=1):
        graded = night(tmp_path, str(k), "grading", {"graders": JUDGED}, made_of)
        Campaign(root, "page").commit(
            State(iteration=k, steps={"rollouts": f"rollouts/r{k}", "grading": graded.id}, **usual)
        )
    before = outcomes_of_run(3, None, JUDGED, "c1", history={"grader": "rubric"})
    state = State(iteration=3, prompt_history=night(tmp_path, "h", STEP, before.model_dump(mode="json")).id, **usual)
    run = RunContext(root=root, campaign="page", iteration=4)
    now = outcomes_of_run(4, None, JUDGED, "c2", history={"grader": "rubric"})
    assert [rollouts.id for rollouts, _ in earlier_grades(state, now, run)] == ["rollouts/r2"]
    assert earlier_grades(state, before, run) == []


SLOW = [{"grader": "verifier"}, {"grader": "folder", "name": "people", "latency": "slow", "params": {"folder": "f"}}]


@pytest.mark.parametrize("reader", [{"strategy": "thompson"}, {"retire_from": 0.9}], ids=str)
@pytest.mark.parametrize(
    ("history", "message"),
    [({"outcome": "reward"}, "outcome is reward, and grader 'people'"), ({"grader": "people"}, "'people' is slow")],
    ids=str,
)
def test_outcomes_that_come_too_late_to_draw_by_are_refused(reader, history, message):
    with pytest.raises(InputError, match=message):
        outcomes_of_run(1, None, SLOW, history=history, **reader)
    assert outcomes_of_run(1, None, SLOW, history=history)


def night(folder, name: str, stage: str, config: dict, inputs: dict[str, str] | None = None) -> Artifact:
    """An artifact of which only the configuration matters."""
    artifact = Artifact(root=str(folder / "root"), stage=stage, fingerprint=f"{stage}{name}")
    recipe = Recipe(artifact, step=stage, version=1, config=config, inputs=inputs or {}, seed=None)
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
