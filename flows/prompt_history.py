"""The part of an iteration that remembers how its prompts did, for the next iteration's `select`."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.config import RunConfig
from flows.reward_models import InCharge
from flows.steps import FIRST
from storage.artifacts import Artifact
from storage.campaigns import Campaign, State
from storage.fingerprints import digest, hashed_part
from tasks._stage import RunContext
from tasks.grading.config import REWARD_MODEL, GraderConfig, GradingConfig
from tasks.select.config import SelectConfig
from tasks.select.history_config import OutcomesConfig
from tasks.select.stage import record_outcomes
from tasks.select.strategy_config import GresoConfig

STEP = "history"
KEY_DIGITS = 12
# Earlier iterations whose stored grades are read again when who makes the outcomes changed.
RECOMPUTED_ITERATIONS = 60
# What becomes of a verdict or a score, not what it is.
USE_OF_OUTCOME = frozenset({"name", "weight", "from_iteration", "judge", "pass_score"})


def record_history(
    state: State,
    config: RunConfig,
    run: RunContext,
    drawn: Artifact,
    graded: Sequence[tuple[Artifact, Artifact]],
    graders: GradingConfig,
    scorer: InCharge,
    judge_models: Mapping[str, Artifact],
) -> Artifact:
    """The prompt history after this iteration.

    `drawn` is the newest batch with its history; `graded` each its rollouts and what holds their grades and
    rewards; `graders` are those that graded, `scorer` and `judge_models`
    (by the grader's label) those that they had.
    """
    outcomes = outcomes_config(config.select, config.grading, graders, scorer, judge_models)
    earlier = earlier_grades(state, outcomes, run)
    return record_outcomes(
        history=drawn,
        rollouts=[rollouts for rollouts, _ in graded],
        rewards=[rewards for _, rewards in graded],
        earlier_rollouts=[rollouts for rollouts, _ in earlier],
        earlier_grades=[grades for _, grades in earlier],
        config=outcomes,
        step=STEP,
    )


def outcomes_config(
    select: SelectConfig,
    grading: GradingConfig,
    graders: GradingConfig,
    scorer: InCharge,
    judge_models: Mapping[str, Artifact],
) -> OutcomesConfig:
    """The history's settings with who makes the outcomes: of all `grading`, the `graders` of one iteration.

    A local judge's configuration says 'champion' or where a model lies; its artifact says which model that was.
    """
    trained = _scorer_key(*scorer.ids().values()) if graders.needs_reward_model else None
    served = {label: model.id for label, model in sorted(judge_models.items())}
    grader = _counting(select.history.grader, grading.graders)
    return OutcomesConfig(
        history=select.history,
        grader=grader.label,
        grader_key=_key(grader, trained if grader.grader == REWARD_MODEL else served.get(grader.label)),
        reward_key=digest([hashed_part(graders), trained, *([served] if served else [])])[:KEY_DIGITS],
        skipping=select.strategy if isinstance(select.strategy, GresoConfig) else None,
    )


def _counting(label: str | None, graders: list[GraderConfig]) -> GraderConfig:
    """The grader whose outcomes count: the one named, else the first that answers at once and isn't a reward model."""
    if label is not None:
        return next(grader for grader in graders if grader.label == label)
    fitting = [grader for grader in graders if not grader.is_slow and not grader.is_reward_model]
    return (fitting or graders)[0]


def _scorer_key(reward_model: str | None, reward_check: str | None) -> str | None:
    """A reward model, with the check whose calibration its scores went through."""
    return f"{reward_model} {reward_check}" if reward_model and reward_check else reward_model


def _key(grader: GraderConfig, judge_model: str | None) -> str:
    """The grader, and what it judges or scores by: a model of this iteration, not of its configuration."""
    kept: dict[str, Any] = {name: value for name, value in hashed_part(grader).items() if name not in USE_OF_OUTCOME}
    if judge_model is not None:
        kept["judge_model"] = judge_model
    return digest(kept)[:KEY_DIGITS]


def earlier_grades(state: State, outcomes: OutcomesConfig, run: RunContext) -> list[tuple[Artifact, Artifact]]:
    """Rollouts and grades of earlier iterations, the oldest first, where the history before was made of others.

    Of those whose grader is today's, and judged by today's model: only its stored verdicts and scores are what it would
    say now.
    """
    if state.prompt_history is None or outcomes.bases == ("reward",):
        return []
    before = Artifact.at(run.root, state.prompt_history)
    if before.stage == STEP and _maker(before.manifest.config) == _maker(outcomes.model_dump(mode="json")):
        return []
    campaign = Campaign(run.root, run.campaign)
    found = []
    for k in [k for k in campaign.iterations() if FIRST < k < run.iteration][-RECOMPUTED_ITERATIONS:]:
        steps = campaign.state(k).steps
        grades = Artifact.at(run.root, steps["grading"])
        if _key_then(grades, outcomes.grader) == outcomes.grader_key:
            found.append((Artifact.at(run.root, steps["rollouts"]), grades))
    return found


def _key_then(grades: Artifact, label: str) -> str | None:
    """The grader's key in an earlier iteration; None where it didn't grade, or nobody knows which model judged.

    The grades of rounds name their parts and not the judges' models.
    """
    manifest = grades.manifest
    graders = GradingConfig.model_validate(manifest.config).graders
    grader = next((grader for grader in graders if grader.label == label), None)
    if grader is None:
        return None
    judge_model = manifest.inputs.get(f"judge_models.{label}")
    if grader.grader == REWARD_MODEL:
        judge_model = _scorer_key(*(manifest.inputs.get(name) for name in ("reward_model", "reward_check")))
    if judge_model is None and (grader.local_model is not None or grader.is_reward_model):
        return None
    return _key(grader, judge_model)


def _maker(config: dict[str, Any]) -> list[Any]:
    """Who makes a verdict or a score, and what becomes a success."""
    history = config["history"]
    return [config["grader"], config["grader_key"], history["outcome"], list(history["reward_range"])]
