"""The stage `reward_gate`: a new reward model's check and the present one's -> whether the new one grades."""

from collections.abc import Sequence

import polars as pl

from storage.artifacts import Artifact, Outputs
from storage.errors import InputError
from tasks._stage import StageContext, stage
from tasks.reward_gate.comparison import (
    TIES,
    Checked,
    Comparison,
    compare,
    held_out_pairs,
    judged_pairs,
    refuse_overlap,
    training_pairs,
)
from tasks.reward_gate.config import RewardGateConfig
from tasks.reward_gate.verdict import Case, Verdict, judge

NOT_CHECKED = Checked({}, pl.DataFrame(schema={"pair_id": pl.String, "right": pl.Float64}))


@stage("reward_gate", version=1)
def judge_candidate(
    candidate: Artifact,
    check: Artifact | None,
    incumbent: Artifact | None,
    incumbent_check: Artifact | None,
    preferences: Artifact,
    anchors: Artifact | None,
    trained_on: Sequence[Artifact],
    incumbent_trained_on: Sequence[Artifact],
    config: RewardGateConfig,
    *,
    seed: int,
    context: StageContext,
) -> Outputs:
    """The criteria of the gate and the verdict.

    `preferences` holds the pairs of both checks; a check is None where none of them is held out. `anchors` are
    pairs that both were asked about besides. `trained_on` are the
    preferences behind each reward model. Raises `InputError` for a candidate that trained on what would promote it,
    and for a check of something else.
    """
    held_out = held_out_pairs(preferences.scan("preferences"))
    for each in trained_on:
        trained, what = training_pairs(each.scan("preferences")), f"{candidate.id}, trained on {each.id}"
        refuse_overlap(trained, held_out, what)
        if anchors is not None:
            refuse_overlap(trained, anchors.scan("preferences").select(*TIES), f"{what}: anchors {anchors.id}")
    now, before = _checked(candidate, check, preferences), None
    compared: Comparison | None = None
    if incumbent is not None:
        before = _checked(incumbent, incumbent_check, preferences)
        seen = [training_pairs(each.scan("preferences")) for each in incumbent_trained_on]
        known = pl.concat([*seen, held_out.clear()]).collect()
        compared = compare(now, before, known, level=config.confidence, seed=seed)
    verdict = judge(Case(now, before, compared, config))
    context.log.info(
        "reward_gate: %s %s: %s", candidate.id, "promoted" if verdict.promoted else "stays out", verdict.why
    )
    return Outputs(metrics=_metrics(verdict, compared), facts={"why": verdict.why}, gate=verdict.frame)


def _checked(model: Artifact, check: Artifact | None, preferences: Artifact) -> Checked:
    if check is None:
        return Checked({}, judged_pairs(NOT_CHECKED.pairs.lazy(), preferences.scan("preferences")))
    for name, expected in (("reward_model", model), ("preferences", preferences)):
        found = check.manifest.inputs.get(name)
        if found != expected.id:
            raise InputError(f"{check.id} is a check of {name} {found}, expected {expected.id}; check that one")
    pairs = judged_pairs(check.scan("checked_pairs"), preferences.scan("preferences"))
    return Checked(check.metrics, pairs)


def _metrics(verdict: Verdict, compared: Comparison | None) -> dict[str, float]:
    """The verdict in numbers; the paired difference where there are two to compare."""
    failed = sum(not each.passed for each in verdict.criteria)
    metrics = {"promoted": float(verdict.promoted), "criteria_failed": float(failed)}
    if compared is not None:
        metrics |= {"pairs_compared": float(compared.pairs), "pairs_left_out": float(compared.left_out)}
        if compared.difference is not None:
            difference = compared.difference
            metrics |= {
                "accuracy_difference": difference.estimate,
                "accuracy_difference_low": difference.low,
                "accuracy_difference_high": difference.high,
            }
    return metrics
