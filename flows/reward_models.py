"""The part of an iteration that keeps the reward model honest: watch it, train another when due, let the gate decide.

The one in charge grades until another one passes the gate. Both are checked on the same held-out pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import httpx
import polars as pl
from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.config import RunConfig
from flows.frozen_heads import make_reward_model
from flows.reward_schedule import Signs, drift
from flows.slow_grades import Graded
from storage.artifacts import Artifact
from storage.campaigns import Campaign, State
from storage.errors import TooFew
from storage.fingerprints import derive_seed
from storage.policies import base_of
from tasks._stage import RunContext
from tasks.preferences.stage import import_pairs
from tasks.reward_check.stage import check_reward_model
from tasks.reward_gate.stage import judge_candidate

# `reward_check` is the one in charge, or the first one's; `reward_check-candidate` is one that challenges it.
CHECK, CANDIDATE_CHECK = "reward_check", "reward_check-candidate"
TRAINED = "reward_model"
ANCHORS = "anchors"
TAG = "posttrain.reward_model"
NONE = "none"


class InCharge(NamedTuple):
    """The reward model that grades the next iteration, and the check that it was promoted by."""

    reward_model: Artifact | None
    reward_check: Artifact | None

    def ids(self) -> dict[str, str | None]:
        """The fields of the state."""
        return {name: artifact.id if artifact else None for name, artifact in self._asdict().items()}


@dataclass(frozen=True)
class Night:
    """What an iteration has when its pairs are collected. `graded`: its rollouts, their prompts and their rewards."""

    state: State
    config: RunConfig
    run: RunContext
    policy: Artifact
    graded: Graded
    pairs: Artifact
    anchors: Artifact | None

    def count(self, split: str, sources: Sequence[str] | None = None) -> int:
        """This iteration's pairs of a split in which one answer is better; of these sources alone, where named."""
        pairs = self.pairs.scan("preferences").filter(pl.col("split").cast(pl.String) == split)
        if "tie" in pairs.collect_schema():
            pairs = pairs.filter(~pl.col("tie").fill_null(False))
        if sources is not None:
            pairs = pairs.filter(pl.col("source").cast(pl.String).is_in(list(sources)))
        return int(pairs.select(pl.len()).collect().item())


def in_charge(state: State, run: RunContext) -> InCharge:
    """What the state names; a campaign of before has no check."""
    named = (state.reward_model, state.reward_check)
    return InCharge(*(Artifact.at(run.root, each) if each else None for each in named))


def read_anchors(config: RunConfig) -> Artifact | None:
    """The pairs of the run file's anchors; found where nothing changed."""
    files = config.anchor_files
    if files is None or not config.reward_model.enabled:
        return None
    return import_pairs(config=files, seed=derive_seed(config.seed, ANCHORS), step=ANCHORS)


def refresh(night: Night) -> InCharge:
    """The reward model of the next iteration: the one in charge, or a newly trained one that passed its gate."""
    present = in_charge(night.state, night.run)
    config = night.config.reward_model
    if not config.enabled:
        return present
    watched = _watch(night, present) if config.watch or config.when == "trigger" else None
    if not _due(night, present, watched) or not _enough(night):
        return present
    candidate = _train(night)
    if candidate is None:
        return present
    first = present.reward_model is None
    check = _check(night, candidate, CHECK if first else CANDIDATE_CHECK)
    if not night.config.reward_gate.enabled:
        return InCharge(candidate, check)
    if watched is None:
        watched = _watch(night, present)
    verdict = judge_candidate(
        candidate=candidate,
        check=check,
        incumbent=present.reward_model,
        incumbent_check=watched,
        preferences=night.pairs,
        anchors=night.anchors,
        trained_on=_pairs_behind(candidate),
        incumbent_trained_on=_pairs_behind(present.reward_model),
        config=night.config.reward_gate,
        seed=derive_seed(night.config.seed, "reward_gate"),
    )
    promoted = bool(verdict.metrics["promoted"])
    _announce(night, candidate, present.reward_model, verdict, promoted)
    return InCharge(candidate, check) if promoted else present


def _train(night: Night) -> Artifact | None:
    """A newly trained one; None where fewer can train than were counted: too long, dropped, of too few prompts."""
    base = night.policy if night.config.reward_model.base == "policy" else base_of(night.policy)
    seed = derive_seed(night.config.seed, night.run.iteration, "rm")
    try:
        return make_reward_model(night.pairs, base, night.config, seed=seed)
    except TooFew as error:
        get_run_logger().warning("no reward model is trained: %s", error)
        return None


def _watch(night: Night, present: InCharge) -> Artifact | None:
    """The one in charge on this iteration's held-out pairs and rollouts: what it is worth now."""
    if present.reward_model is None:
        return None
    return _check(night, present.reward_model, CHECK, graded_by=present.reward_check)


def _check(night: Night, model: Artifact, step: str, graded_by: Artifact | None = None) -> Artifact | None:
    """The model on this iteration's held-out pairs; None where there are none, or all are too long."""
    if not night.count("eval"):
        get_run_logger().warning(
            "%s isn't checked: no pair of this iteration is held out; raise preferences.eval_fraction, or draw more "
            "prompts",
            model.id,
        )
        return None
    try:
        return check_reward_model(
            reward_model=model,
            preferences=night.pairs,
            rollouts=night.graded.rollouts,
            grading=night.graded.grading,
            prompts=night.graded.batch,
            graded_by=graded_by,
            anchors=night.anchors,
            config=night.config.reward_check,
            seed=derive_seed(night.config.seed, "reward_check"),
            step=step,
        )
    except TooFew as error:
        get_run_logger().warning("%s isn't checked: %s", model.id, error)
        return None


def _due(night: Night, present: InCharge, watched: Artifact | None) -> bool:
    """Whether the calendar or a sign of drift asks for a training."""
    config, k = night.config.reward_model, night.run.iteration
    if config.due(k, present=present.reward_model is not None):
        return True
    if config.when != "trigger" or watched is None or _trained_lately(night):
        return False
    then = baseline(night, present)
    if then is None:
        return False
    found = drift(Signs(then.metrics, watched.metrics), config.trigger)
    for each in found:
        get_run_logger().info("a new reward model is due: %s", each)
    return bool(found)


def baseline(night: Night, present: InCharge) -> Artifact | None:
    """What drift is measured from: the check that promoted the one in charge, else the first watch of it.

    None where this iteration's is the first.
    """
    if present.reward_check is not None or present.reward_model is None:
        return present.reward_check
    campaign, model = Campaign(night.run.root, night.config.campaign), present.reward_model.id
    named = (campaign.state(k).steps.get(CHECK) for k in campaign.iterations() if k < night.run.iteration)
    checks = (Artifact.at(night.run.root, each) for each in named if each)
    first = next((each for each in checks if each.manifest.inputs.get("reward_model") == model), None)
    if first is None:
        get_run_logger().info("%s grades without a check: signs of drift are measured from this iteration on", model)
    return first


def _trained_lately(night: Night) -> bool:
    """Whether an iteration within `trigger.wait_iterations` trained one, whatever became of it."""
    campaign, k = Campaign(night.run.root, night.config.campaign), night.run.iteration
    since = k - night.config.reward_model.trigger.wait_iterations
    return any(TRAINED in campaign.state(each).steps for each in campaign.iterations() if since <= each < k)


def _enough(night: Night) -> bool:
    """Whether there are pairs to train on; a night with too few keeps the reward model that there is."""
    config = night.config.reward_model
    training = night.count("train", config.sources)
    if training >= config.min_pairs:
        return True
    get_run_logger().warning(
        "no reward model is trained: %d training pairs%s that aren't ties, reward_model.min_pairs is %d; lower it or "
        "preferences.min_margin, or draw more prompts",
        training,
        f" of source {', '.join(config.sources)}" if config.sources else "",
        config.min_pairs,
    )
    return False


def _pairs_behind(model: Artifact | None) -> list[Artifact]:
    """The preferences that a reward model was trained on."""
    if model is None:
        return []
    named = [made for made in model.manifest.inputs.values() if made.partition("/")[0] == "preferences"]
    return [Artifact.at(model.root, made) for made in named]


def _announce(night: Night, candidate: Artifact, present: Artifact | None, verdict: Artifact, promoted: bool) -> None:
    """Say which reward model grades from now on, and why: in the log, in Prefect, as a tag in MLflow."""
    log, run, why = get_run_logger(), night.run, verdict.manifest.facts["why"]
    grades = candidate.id if promoted else present.id if present else NONE
    if promoted:
        log.info("reward model: %s grades from the next iteration on: %s", candidate.id, why)
    else:
        log.warning("reward model: %s stays out, what grades on: %s; %s", candidate.id, grades, why)
    if run.tracker and run.mlflow_run_id:
        tags = {TAG: grades, f"{TAG}.verdict": f"{candidate.id} {'promoted' if promoted else 'stays out'}: {why}"}
        trouble = run.tracker.set_tags(run.mlflow_run_id, tags)
        if trouble:
            log.warning("reward_gate: MLflow didn't take the verdict (%s); the table `gate` has it", trouble)
    try:
        create_markdown_artifact(verdict_page(candidate, verdict, promoted, grades), key="reward-gate-verdict")
    except httpx.HTTPError as error:
        log.warning("reward_gate: Prefect didn't take the verdict's page (%s)", error)


def verdict_page(candidate: Artifact, verdict: Artifact, promoted: bool, grades: str) -> str:
    """The verdict in Markdown: what grades, and each criterion with its numbers and reason."""
    verb = "was promoted" if promoted else "stays out"
    head = f"**{candidate.id}** {verb}; `{grades}` grades from the next iteration on"
    rows = ["| criterion | holds | candidate | present | limit | why |", "|---|---|---|---|---|---|"]
    for row in verdict.read("gate").sort("position").to_dicts():
        numbers = ("–" if row[name] is None else f"{row[name]:.3f}" for name in ("candidate", "incumbent", "limit"))
        rows.append(f"| {row['name']} | {'yes' if row['passed'] else 'no'} | {' | '.join(numbers)} | {row['why']} |")
    return f"{head}\n\n" + "\n".join(rows)
