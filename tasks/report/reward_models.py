"""What a campaign tells of its reward models: each check, the gate's reasons, over-optimisation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.artifacts import Artifact
from storage.fingerprints import derive_seed
from tasks._maths.overoptimisation import Alarm, Turning, fit_turning, watch

Steps = Mapping[int, Mapping[str, Artifact]]
CHECKS = ("reward_check-candidate", "reward_check")
GATE = "reward_gate"
REWARD_MODEL = "reward_model"
HELD_OUT = "held-out score"
DETAILS = ("predicted", "observed", "accuracy", "gap_bias")


@dataclass(frozen=True)
class Watched:
    """Proxy and held-out reward of each policy that one reward model has graded, ascending. `rows`: `iteration` of the
    policy, `proxy`, `gold`, `kl` in nats per answer from the first policy (None where nobody measured it).
    """

    gold: str
    rows: list[dict[str, Any]]
    turning: Turning | None
    alarm: Alarm | None


@dataclass(frozen=True)
class RewardModels:
    """`checks`: metrics by iteration, with `candidate` (bool) and `model`; `details`: the newest check's rows of `gap`;
    `verdicts`: what each gate decided, with its `criteria`.
    """

    checks: list[dict[str, Any]]
    details: dict[str, list[dict[str, Any]]]
    checked: str
    verdicts: list[dict[str, Any]]
    watched: Watched | None


def reward_models(steps: Steps, gold: str = "") -> RewardModels:
    """Everything that the history has of it. `gold`: the grader that stands for people; none: the held-out score.

    A first one that its gate refused is a candidate like any other, though its check stands where one in charge has it.
    """
    found = [
        (k, step, made[step]) for k, made in steps.items() for step in CHECKS if step in made and _checks(made[step])
    ]
    refused = {(each["iteration"], each["candidate"]) for each in verdicts(steps) if not each["promoted"]}
    checks: list[dict[str, Any]] = [
        {"iteration": k, "candidate": step == CHECKS[0] or (k, model) in refused, "model": model} | made.metrics
        for k, step, made in found
        for model in (made.manifest.inputs.get(REWARD_MODEL, ""),)
    ]
    details: dict[str, list[dict[str, Any]]] = {name: [] for name in DETAILS}
    for row in found[-1][2].read("gap").to_dicts() if found else []:
        if row["measure"] in details and row["slice"] != "all":
            details[row["measure"]].append(row)
    return RewardModels(checks, details, checks[-1]["model"] if checks else "", verdicts(steps), watched(steps, gold))


def verdicts(steps: Steps) -> list[dict[str, Any]]:
    """Each gate's verdict, the newest first: which reward model wanted in, whether it came, by which criteria."""
    found = []
    for k, made in steps.items():
        gate = made.get(GATE)
        if gate is None or "gate" not in gate.manifest.tables:
            continue
        rows = gate.read("gate")
        criteria = rows.sort("position").to_dicts() if "position" in rows.columns else rows.to_dicts()
        found.append(
            {
                "iteration": k,
                "candidate": gate.manifest.inputs.get("candidate", ""),
                "incumbent": gate.manifest.inputs.get("incumbent", ""),
                "promoted": gate.metrics.get("promoted") == 1,
                "why": str(gate.manifest.facts.get("why", "")),
                "criteria": criteria,
            }
        )
    return found[::-1]


def watched(steps: Steps, gold: str) -> Watched | None:
    """Proxy against held-out reward of the policies that the newest reward model graded; None without one.

    The policy of iteration k made the rollouts of k + 1, whose grades are its proxy reward; its held-out score is in
    iteration k, a grader's scores in k + 1. Another reward model is another proxy: earlier ones' points don't count.
    """
    graded = [(k, _settled(made), model_of(made), _proxy_label(made)) for k, made in steps.items()]
    graded = [each for each in graded if each[2] and each[3]]
    if not graded:
        return None
    rows = []
    for k, artifact, model, label in graded:
        if model != graded[-1][2] or artifact is None:
            continue
        said, came = artifact.metrics.get(f"score/{label}_mean"), _gold(steps, k, gold)
        if said is not None and came is not None:
            rows.append({"iteration": k - 1, "proxy": said, "gold": came, "kl": _kl(steps, k)})
    if not rows:
        return None
    proxy, truth = (np.array([row[name] for row in rows]) for name in ("proxy", "gold"))
    turning, newest = _turning(rows), rows[-1]["kl"]
    alarm = watch(proxy, truth, turning, math.sqrt(newest) if newest is not None else 0.0)
    return Watched(gold or HELD_OUT, rows, turning, alarm)


def _turning(rows: list[dict[str, Any]]) -> Turning | None:
    known = [row for row in rows if row["kl"] is not None]
    distance = np.array([math.sqrt(row["kl"]) for row in known])
    gold = np.array([row["gold"] for row in known])
    return fit_turning(distance, gold, form="rl", seed=derive_seed(0, "over-optimisation"))


def _gold(steps: Steps, k: int, gold: str) -> float | None:
    if gold:
        graded = _settled(steps[k])
        return graded.metrics.get(f"score/{gold}_mean") if graded is not None else None
    evaluation = steps.get(k - 1, {}).get("evaluation")
    return evaluation.metrics.get("mean_score") if evaluation is not None else None


def _kl(steps: Steps, k: int) -> float | None:
    """Nats per answer of the policy that made iteration k's rollouts from the first one: 0 for that itself.

    An update measures it per token, on the answers that it learned from.
    """
    before = steps.get(k - 1, {})
    update = before.get("policy_update")
    if update is None:
        return 0.0 if k == 1 else None
    if update.manifest.config.get("kl", {}).get("reference") != "first":
        return None
    per_token, length = (
        update.metrics.get("kl_reference"),
        before["rollouts"].metrics.get("length_mean") if "rollouts" in before else None,
    )
    return max(per_token * length, 0.0) if per_token is not None and length is not None else None


def model_of(made: Mapping[str, Artifact]) -> str | None:
    """The reward model that graded an iteration; of rounds each has its own grading, all by the same one."""
    models = [each.manifest.inputs.get(REWARD_MODEL) for step, each in made.items() if step.startswith("grading")]
    return next((model for model in models if model), None)


def _settled(made: Mapping[str, Artifact]) -> Artifact | None:
    """The grades that trained: where graders are slow `rewards` holds them."""
    return made.get("rewards") or made.get("grading")


def _proxy_label(made: Mapping[str, Artifact]) -> str | None:
    """What the reward model is called among the graders; None where none of them is one."""
    graded = _settled(made)
    for grader in graded.manifest.config.get("graders", []) if graded is not None else []:
        if grader.get("grader") == REWARD_MODEL:
            return str(grader.get("name") or REWARD_MODEL)
    return None


def _checks(artifact: Artifact) -> bool:
    return "gap" in artifact.manifest.tables
