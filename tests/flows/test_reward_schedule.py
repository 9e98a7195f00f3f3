"""When a reward model is trained: the run file's words, the calendar, the signs of drift; and who made the rewards."""

import math
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from flows.config import RunConfig, load_config, parse_config
from flows.plan import print_plan
from flows.prompt_history import outcomes_config
from flows.reward_models import InCharge
from flows.reward_schedule import Signs, drift, schedule
from storage.artifacts import Artifact
from storage.campaigns import Campaign, State
from storage.errors import InputError
from tasks.reward_model.config import RewardModelConfig
from tasks.reward_model.refresh_config import TriggerConfig

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "deployments" / "reward-refresh.md").read_text(encoding="utf-8")
SNIPPETS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
GRADERS = [{"grader": "verifier"}, {"grader": "reward_model", "from_iteration": 2}]
REST = {
    "campaign": "page",
    "model": {"path": "model"},
    "curate": {"sources": [{"generator": "haiku"}]},
    "grading": {"graders": GRADERS},
}


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_a_snippet_loads(snippet):
    config = parse_config(REST | snippet, "page")
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_the_page_names_every_criterion_and_every_way():
    from tasks.reward_gate.verdict import CRITERIA

    named = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert named == ["when", "offline", "every", "trigger", *CRITERIA]


@pytest.mark.parametrize(
    ("given", "present", "due"),
    [
        ({}, False, {1, 2, 3, 4, 5}),
        ({}, True, set()),
        ({"when": "trigger"}, True, set()),
        ({"when": "trigger"}, False, {1, 2, 3, 4, 5}),
        ({"when": "every"}, True, {1, 4}),
        ({"train_every": 2}, True, {1, 3, 5}),
        ({"train_every": 2}, False, {1, 3, 5}),
        ({"train_every": None}, True, set()),
        ({"enabled": False}, False, set()),
    ],
)
def test_what_the_calendar_asks_for(given, present, due):
    """Without a word offline; an interval alone means every, as run files of before have it."""
    config = RewardModelConfig.model_validate(given)
    assert {k for k in range(1, 6) if config.due(k, present=present)} == due
    assert RewardModelConfig.model_validate(config.model_dump(mode="json")) == config


def test_an_interval_belongs_to_every():
    with pytest.raises(InputError, match="reward_model: when is offline, and train_every belongs to when: every"):
        load_config(REPOSITORY / "deployments" / "quickstart.yaml", ["reward_model.when=offline"])
    changed = ["reward_model.when=offline", "reward_model.train_every=null"]
    assert load_config(REPOSITORY / "deployments" / "quickstart.yaml", changed).reward_model.when == "offline"


THEN = {"heldout_accuracy": 0.9, "gap_mae": 2.0, "uncertainty_mean": 0.4, "pairs": 80.0}
THEN |= {"fresh_accuracy": 0.7, "fresh_accuracy_high": 0.8, "fresh_pairs": 50.0}


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({}, []),
        ({"fresh_uncertainty_mean": 0.6}, []),
        ({"fresh_uncertainty_mean": 0.61}, ["uncertainty"]),
        ({"fresh_accuracy": 0.5, "fresh_accuracy_high": 0.671}, []),
        ({"fresh_accuracy": 0.5, "fresh_accuracy_high": 0.669}, ["accuracy"]),
        ({"fresh_accuracy_high": 0.4, "fresh_pairs": 49.0}, []),
        ({"heldout_accuracy": 0.1}, []),
        ({"gap_mae": 2.19}, []),
        ({"gap_mae": 2.21}, ["gap"]),
        ({"gap_mae": 9.0, "graded_gap_mae": 2.1}, []),
        ({"gap_mae": 2.0, "graded_gap_mae": 2.3}, ["gap"]),
        ({"gap_mae": math.nan, "fresh_accuracy_high": math.nan, "fresh_uncertainty_mean": math.nan}, []),
        (
            {"gap_mae": 9.0, "fresh_accuracy_high": 0.1, "fresh_uncertainty_mean": 9.0},
            ["uncertainty", "gap", "accuracy"],
        ),
    ],
)
def test_signs_of_drift(now, said):
    """methods.md, section 3.6: uncertainty above 1.5 times, gap up, accuracy down 3 points."""
    found = drift(Signs(THEN, THEN | now), TriggerConfig())
    assert [next(name for name in ("uncertainty", "gap", "accuracy") if name in each) for each in found] == said


@pytest.mark.parametrize(("fresh", "said"), [(0.9, 0), (1.2, 0), (1.21, 1)])
def test_uncertainty_of_rollouts_is_compared_with_that_of_rollouts(fresh, said):
    """Answers of files may be surer or less sure than any rollout was: they say nothing of a drift."""
    then = THEN | {"fresh_uncertainty_mean": 0.8}
    assert len(drift(Signs(then, THEN | {"fresh_uncertainty_mean": fresh}), TriggerConfig())) == said


def test_no_sign_without_something_to_compare_with():
    fresh = {"fresh_uncertainty_mean": 9.0}
    assert drift(Signs({}, THEN | fresh), TriggerConfig()) == drift(Signs(THEN, {}), TriggerConfig()) == []
    alone = THEN | {"uncertainty_mean": 0.0}
    assert drift(Signs(alone, THEN | fresh), TriggerConfig()) == [], "one member alone has none"


@pytest.mark.parametrize(
    ("given", "present", "words"),
    [
        ({}, None, "once, in the first iteration with 16 training pairs, then frozen"),
        ({}, "rm/1", "none: rm/1 is frozen"),
        ({"when": "trigger"}, None, "once, in the first iteration with 16 training pairs, then on signs of drift"),
        ({"when": "trigger"}, "rm/1", "rm/1 until it shows signs of drift"),
        ({"train_every": 3}, "rm/1", "4"),
        ({"train_every": 9}, None, "none"),
        ({"enabled": False}, None, "none"),
    ],
)
def test_the_schedule_in_words(given, present, words):
    assert schedule(RewardModelConfig.model_validate(given), range(2, 6), present) == words


def test_check_prints_when_one_is_trained_and_what_it_must_hold(tmp_path, tiny_model, capsys):
    config = load_config(
        REPOSITORY / "deployments" / "quickstart.yaml",
        ["reward_model={}", f"model.path={tiny_model}", f"root={tmp_path / 'root'}"],
    )
    print_plan(config, Console(width=200))
    plan = capsys.readouterr().out
    assert "once, in the first iteration with 16 training pairs" in plan
    assert "accuracy of the first always, of others at most 0.05 worse" in plan
    usual = {"campaign": "quickstart", "policy": "p/1", "champion": "p/1", "champion_evaluation": "e/1"}
    Campaign(config.resolved_root(), "quickstart").commit(State(iteration=1, reward_model="reward_model/abc", **usual))
    print_plan(config, Console(width=200))
    assert "none: reward_model/abc is frozen" in capsys.readouterr().out


def test_check_counts_the_rounds(tmp_path, tiny_model, capsys):
    config = load_config(
        REPOSITORY / "deployments" / "quickstart.yaml",
        [
            "rounds={screening: {samples: 2}, refill: {groups: 20, max_rounds: 3, prompts: 10}}",
            f"model.path={tiny_model}",
            f"root={tmp_path / 'root'}",
        ],
    )
    print_plan(config, Console(width=200))
    plan = capsys.readouterr().out
    assert "2 samples of each prompt, the rest where they vary; other prompts until 20 groups survive" in plan
    most = (32 + 2 * 10) * 8
    assert f"256 to {most} rollouts" in plan and "in 3 rounds at most" in plan
    assert f"budget {3 * most:,} rollouts" in plan
    assert f"in all: at most {3 * most * 48:,} sampled tokens" in plan


def outcomes(reward_model: str | None, check: str | None = None, **history):
    config = parse_config(REST | {"select": {"history": history}}, "test")
    made = [
        Artifact(root="root", stage=stage, fingerprint=name) if name else None
        for stage, name in (("reward_model", reward_model), ("reward_check", check))
    ]
    return outcomes_config(
        config.select, config.grading, config.grading.active(3, reward_model is not None), InCharge(*made), {}
    )


def test_another_reward_model_or_calibration_makes_other_rewards():
    keys = [outcomes(*named).reward_key for named in ((None,), ("a",), ("b",), ("b", "c"), ("b", "d"))]
    assert len(set(keys)) == 5 and outcomes("b", "c").reward_key == keys[3]


def test_where_the_reward_model_is_the_counting_grader_its_outcomes_are_dropped_with_it():
    keys = {outcomes(name, grader="reward_model", outcome="score").grader_key for name in ("a", "b")}
    assert len(keys) == 2
    assert len({outcomes(name).grader_key for name in (None, "a", "b")}) == 1, "a verifier's verdicts stay"


def test_the_check_makes_one_score_of_the_members_as_the_grader_does():
    ensemble = {"how": "uwo", "strength": 0.1}
    graders = {"grading": {"graders": [GRADERS[0], {**GRADERS[1], "ensemble": ensemble}]}}
    assert parse_config(REST | graders, "test").reward_check.ensemble.model_dump() == ensemble
    own = {"reward_check": {"ensemble": {"how": "wco"}}}
    assert parse_config(REST | graders | own, "test").reward_check.ensemble.how == "wco"
    assert parse_config(REST, "test").reward_check.ensemble.how == "mean"
