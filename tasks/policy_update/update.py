"""One policy update: trajectories or pairs in, a changed policy out."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool

from storage.errors import InputError
from tasks._devices import choose_device
from tasks._engines.chat import load_tokenizer
from tasks._maths.advantages import best_against_worst, codpo_pairs
from tasks._training.batching import microbatch_tokens
from tasks._training.loop import OptimizerSpec, StepMetrics, Surroundings, Work, steps_frame, train
from tasks._training.memory import peak_memory
from tasks._training.parallel import join_world
from tasks.policy_update.config import PolicyUpdateConfig
from tasks.policy_update.credit import Credit, Measured, give_credit
from tasks.policy_update.losses import LossFunction, kto_loss, pair_loss, policy_gradient_loss
from tasks.policy_update.measure import microbatch_size, recompute_all
from tasks.policy_update.microbatches import Microbatch, Pair, plan_pair_steps, plan_row_steps
from tasks.policy_update.parity import check_parity
from tasks.policy_update.policy import Place, PolicyFolders, TrainedPolicy, load_frozen, load_policy, save_policy
from tasks.policy_update.rows import TrainingRows, read_pairs, read_rows

Progress = Callable[[int, int, str], None]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lessons:
    """What an update learns from: a `Trajectory` frame, or the `Preference` frame of objectives on stored pairs.

    `reference` is the reference policy; None where it is the policy itself before the update.
    """

    trajectories: pl.DataFrame
    preferences: pl.DataFrame | None = None
    reference: PolicyFolders | None = None


@dataclass(frozen=True)
class PolicyUpdate:
    """The updated policy's folder, a `TrainingStep` frame, and the update's metrics."""

    folder: Path
    steps: pl.DataFrame
    metrics: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """The micro-batches of every optimizer step, their loss, and what was measured on the way."""

    steps: list[list[Microbatch]]
    loss: LossFunction
    trained_rows: int
    metrics: dict[str, float]


def update_policy(
    lessons: Lessons,
    folders: PolicyFolders,
    config: PolicyUpdateConfig,
    *,
    seed: int,
    scratch: Path,
    progress: Progress,
) -> PolicyUpdate:
    """Trains the policy and writes it to `scratch / "policy"`.

    A killed update called again with the same scratch folder resumes from its checkpoint. Without anything to
    learn (no row, or every advantage zero) the policy comes back unchanged and `trained_rows` is 0. Raises
    `InputError` when the parity gate fails, `StageFailed` when a loss or gradient isn't finite.
    """
    world, device = join_world(choose_device(config.device))
    place = Place(device, world)
    rows = _read(lessons, folders, config)
    reference = _reference(lessons, rows, config, place)
    policy = load_policy(folders, config, place, seed=seed)
    parity = check_parity(policy.model, rows, config, seed=seed, world=world)
    plan = plan_update(policy, rows, reference, config, place, seed=seed)
    history: list[StepMetrics] = []
    if plan.steps:
        work = Work(plan.steps, plan.loss, _batch_writer(rows), lambda part: microbatch_size(part.groups))
        spec = OptimizerSpec(
            config.rate, config.warmup_steps, config.max_grad_norm, config.weight_decay, config.schedule
        )
        surroundings = Surroundings(scratch, config.checkpoint_every_steps, progress, world)
        history = train(policy.trainable(), work, spec, surroundings)
    else:
        log.info("nothing to learn from %d rows: the policy stays as it is", len(rows))
    save_policy(policy, folders, config, scratch / "policy")
    metrics = parity | plan.metrics | _summary(history) | {"trained_rows": float(plan.trained_rows)} | peak_memory()
    return PolicyUpdate(scratch / "policy", steps_frame(history), metrics)


def plan_update(
    policy: TrainedPolicy,
    rows: TrainingRows,
    reference: Measured,
    config: PolicyUpdateConfig,
    place: Place,
    *,
    seed: int,
) -> Plan:
    """What each optimizer step computes. `reference` is empty where the policy before the update is the reference."""
    pairs = choose_pairs(rows, config) if config.on_pairs else []
    measured = _measure(policy, rows, _used(pairs, rows, config), reference, config, place)
    budget = microbatch_tokens(config.tokens_per_microbatch, place.device.type)
    if config.on_pairs:
        steps = plan_pair_steps(rows, pairs, config, seed=seed, budget=budget)
        return Plan(steps, pair_loss(policy.model, rows, measured.reference or [], config), 2 * len(pairs), {})
    credit = give_credit(rows, measured, config)
    trained = trained_rows(credit, config)
    steps = plan_row_steps(rows, trained, config, seed=seed, budget=budget)
    if config.objective == "kto":
        loss = kto_loss(policy.model, rows, measured, steps, config)
    else:
        loss = policy_gradient_loss(policy.model, policy.head, rows, credit, config)
    return Plan(steps, loss, int(trained.sum()), credit.metrics)


def _measure(
    policy: TrainedPolicy,
    rows: TrainingRows,
    used: list[int],
    reference: Measured,
    config: PolicyUpdateConfig,
    place: Place,
) -> Measured:
    """The reference's measurements and the policy's own, which stand in for the former where there are none."""
    own = config.needs_reference and reference.reference is None
    if not (own or config.needs_trainer_logprobs or policy.head):
        return reference
    trainer, values = recompute_all(policy.model, rows, used, config, head=policy.head, world=place.world)
    found = replace(reference, trainer=trainer, values=values if policy.head else None)
    if not own:
        return found
    unrelated = None
    if config.objective == "kto":
        unrelated, _ = recompute_all(policy.model, rows.unrelated(), used, config, world=place.world)
    return replace(found, reference=trainer, unrelated=unrelated)


def _used(pairs: list[Pair], rows: TrainingRows, config: PolicyUpdateConfig) -> list[int]:
    """The rows that are measured: those of the pairs, or all of them."""
    return sorted({row for pair in pairs for row in pair}) if config.on_pairs else list(range(len(rows)))


def choose_pairs(rows: TrainingRows, config: PolicyUpdateConfig) -> list[Pair]:
    """(chosen row, rejected row) as `config.pairs.source` says; at most one pair a group, except for stored pairs."""
    if config.on_stored_pairs:
        return [(row, row + 1) for row in range(0, len(rows), 2)]
    if config.pairs.source == "judges":
        return codpo_pairs(rows.rewards, rows.judged(), rows.groups)
    return best_against_worst(rows.rewards, rows.groups)


def trained_rows(credit: Credit, config: PolicyUpdateConfig) -> Bool[np.ndarray, " rows"]:
    """Which rows have a gradient: an advantage that isn't zero, unless a KL penalty or a critic gives every row one."""
    weighted = np.array([bool(line.any()) for line in credit.weights], dtype=bool)
    in_loss = config.kl.coefficient > 0 and config.kl.place == "loss" and config.objective != "likelihood"
    if in_loss or config.credit == "gae":
        return weighted
    return weighted & np.array([bool(line.any()) for line in credit.advantages], dtype=bool)


def _read(lessons: Lessons, folders: PolicyFolders, config: PolicyUpdateConfig) -> TrainingRows:
    if config.on_stored_pairs:
        if lessons.preferences is None:
            raise InputError("policy_update.pairs.source is preferences, and there are none; give the stage's artifact")
        tokenizer = load_tokenizer(folders.base)
        return read_pairs(lessons.preferences, tokenizer, tokenizer.eos_token_id)
    return read_rows(lessons.trajectories)


def _reference(lessons: Lessons, rows: TrainingRows, config: PolicyUpdateConfig, place: Place) -> Measured:
    """What the reference policy says, from a model that is gone before the policy is loaded; empty where it's that."""
    if not config.needs_reference or lessons.reference is None:
        return Measured()
    model = load_frozen(lessons.reference, config, place)
    used = _used(choose_pairs(rows, config) if config.on_pairs else [], rows, config)
    reference, _ = recompute_all(model, rows, used, config, world=place.world)
    if config.objective != "kto":
        return Measured(reference=reference)
    unrelated, _ = recompute_all(model, rows.unrelated(), used, config, world=place.world)
    return Measured(reference=reference, unrelated=unrelated)


def _batch_writer(rows: TrainingRows) -> Callable[[Microbatch, Path], None]:
    def write(microbatch: Microbatch, path: Path) -> None:
        members = [row for group in microbatch.groups for row in group.rows]
        content = [
            {
                "rollout_id": rows.rollout_ids[row],
                "prompt_token_ids": rows.prompts[row].tolist(),
                "token_ids": rows.responses[row].tolist(),
                "logprobs": rows.old_logprobs[row].tolist(),
                "advantage": float(rows.advantages[row]),
                "weight": float(rows.weights[row]),
            }
            for row in members
        ]
        path.write_text(json.dumps(content, indent=1))

    return write


def _summary(history: list[StepMetrics]) -> dict[str, float]:
    """Means over the steps, the totals of tokens, the largest ratio, and the number of steps."""
    if not history:
        return {"optimizer_steps": 0.0}
    means = {name: float(np.mean([step[name] for step in history])) for name in history[0]}
    means["tokens"] = sum(step["tokens"] for step in history)
    if "ratio_max" in means:
        means["ratio_max"] = max(step["ratio_max"] for step in history)
    return means | {"optimizer_steps": float(len(history))}
