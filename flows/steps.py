"""The steps of an iteration by name, and the check of what a rerun asks for: light, before anything starts."""

import re

from storage.campaigns import Campaign, State
from storage.errors import InputError

FIRST = 0
EVALUATION_STEPS = ("evaluation-select", "evaluation-rollouts", "evaluation-grading", "evaluation")
# The base's own evaluation and sft are steps where the run file has demonstrations.
FIRST_STEPS = ("curate", *(f"base-{step}" for step in EVALUATION_STEPS), "sft", *EVALUATION_STEPS)
# `slow-grading` to `late-filtering-1` are steps where graders are slow; `late-rewards-2` and `late-filtering-2` are
# those of the rollouts that were sampled two iterations before, and so on.
LATE = re.compile(r"late-(rewards|filtering)-[1-9]\d*")
# `expand-2` is the step that writes prompts for curate.sources.2, where that source has expand.
EXPAND = re.compile(r"expand-\d+")
# `preference_files` is a step where the run file has `preferences.sources`, `anchors` where it has `anchors`.
# Under `rounds` the steps of round 2 end with -2, those of the samples that follow screening with -2-rest; `select`,
# `rollouts` and `grading` then join the rounds.
JOINED = ("select", "rollouts", "grading")
ROUND = re.compile(
    r"(select|screening|rollouts|grading|rest|rewards|survivors)-[1-9]\d*|(rollouts|grading)-[1-9]\d*-rest"
)
STEPS = (
    "curate",
    "select-1",
    "screening-1",
    "rollouts-1",
    "grading-1",
    "rest-1",
    "rollouts-1-rest",
    "grading-1-rest",
    "rewards-1",
    "survivors-1",
    *JOINED,
    "slow-grading",
    "rewards",
    "late-rewards-1",
    "late-filtering-1",
    "history",
    "filtering",
    "preference_files",
    "label-queue",
    "labels",
    "anchors",
    "preferences",
    "reward_check",
    "states",
    "pair_quality",
    "reward_model",
    "reward_check-candidate",
    "reward_gate",
    "policy_update",
    *EVALUATION_STEPS,
    "report",
)


def committed_state(place: Campaign, iteration: int, stage: str) -> State | None:
    """The state after an iteration if it is committed, None if the iteration is the next one.

    Raises `InputError` for a campaign, iteration or stage that there isn't.
    """
    steps = FIRST_STEPS if iteration == FIRST else STEPS
    numbered = iteration != FIRST and (LATE.fullmatch(stage) or ROUND.fullmatch(stage))
    if stage not in steps and not numbered and not EXPAND.fullmatch(stage):
        raise InputError(f"stage {stage!r} of iteration {iteration}: expected one of {', '.join(steps)}")
    place.launch()
    known = place.iterations()
    if iteration in known:
        return place.state(iteration)
    if iteration != (known[-1] + 1 if known else FIRST):
        raise InputError(f"campaign {place.name!r} below {place.root}: no iteration {iteration}; committed: {known}")
    return None
