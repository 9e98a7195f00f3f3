"""Stage reward_check: a reward model and held-out pairs -> how far it can be trusted, and its calibration to people."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from storage.artifacts import Artifact, Outputs
from storage.errors import InputError, TooFew
from storage.fingerprints import derive_seed
from storage.policies import base_of, resolve_policy
from tasks._maths.ensembles import aggregate
from tasks._stage import StageContext, stage
from tasks.reward_check.check import check_pairs, gap_frame
from tasks.reward_check.config import RewardCheckConfig
from tasks.reward_check.fresh import Fresh, fresh_measures, fresh_metrics, other_scores, sample_prompts
from tasks.reward_check.held_out import HeldOut, held_out, held_out_pairs
from tasks.reward_check.scoring import Scorer, members_of, score_pairs

CALIBRATION = "calibration.json"


@stage("reward_check", version=2)
def check_reward_model(
    reward_model: Artifact,
    preferences: Artifact,
    config: RewardCheckConfig,
    *,
    rollouts: Artifact | None = None,
    grading: Artifact | None = None,
    anchors: Artifact | None = None,
    prompts: Artifact | None = None,
    graded_by: Artifact | None = None,
    seed: int,
    context: StageContext,
) -> Outputs:
    """Check a reward model on the pairs of split `eval`.

    `rollouts` with their `grading`: fresh answers. `anchors`: preferences whose order is agreed on, of either split.
    `prompts`: a pool or batch that knows the prompts' domains. `graded_by`: the check whose calibration graded so far,
    for the gap of what was graded. Raises `TooFew` where no pair is held out, or all are too long.
    """
    files = resolve_policy(base_of(reward_model))
    scorer = Scorer(reward_model.files_folder(), files.weights, files.base)
    domains = _domains(prompts)
    pairs = held_out_pairs(preferences.scan("preferences").filter(pl.col("split") == "eval").collect())
    if pairs.is_empty():
        raise TooFew(
            f"{preferences.id}: no pair of split eval to check {reward_model.id} on; raise preferences.eval_fraction, "
            "or draw more prompts"
        )
    held = _scored(pairs, scorer, config, domains, seed, context, TooFew)
    agreed = None
    if anchors is not None:
        rows = held_out_pairs(anchors.read("preferences"))
        agreed = _scored(rows, scorer, config, domains, seed, context)
    known: dict[str, Any] = {"anchors": agreed, "graded_by": _calibration(graded_by), "iteration": _iteration(rollouts)}
    checked = check_pairs(held, config, seed=seed, **known)
    measures, metrics, gap = [], checked.metrics, checked.gap
    if rollouts is not None:
        fresh = _fresh(rollouts, grading, reward_model, scorer, config, seed)
        measures = fresh_measures(fresh, seed=derive_seed(seed, "fresh"))
        metrics = metrics | fresh_metrics(fresh, measures, metrics["uncertainty_mean"])
        gap = pl.concat([gap, gap_frame(measures)])
    path = context.scratch / CALIBRATION
    path.write_text(json.dumps(checked.calibration, indent=1, sort_keys=True) + "\n")
    context.log.info("reward_check: %s: %s", reward_model.id, said(metrics))
    return Outputs(
        files={CALIBRATION: path},
        metrics=metrics,
        facts={"scale": checked.calibration["scale"], "map": checked.calibration["map"]["kind"]},
        gap=gap,
        checked_pairs=checked.checked_pairs,
    )


def said(metrics: Mapping[str, float]) -> str:
    """The check in a line of the log."""
    found = f"{metrics['heldout_accuracy']:.3f} of {metrics['pairs']:.0f} pairs right"
    found += f" [{metrics['heldout_accuracy_low']:.3f}, {metrics['heldout_accuracy_high']:.3f}]"
    named = {"ece": "ECE", "gap_bias": "bias", "gap_mae": "gap", "length_correlation": "length"}
    return ", ".join([found, *(f"{name} {metrics[key]:+.3f}" for key, name in named.items() if key in metrics)])


def _scored(
    pairs: pl.DataFrame,
    scorer: Scorer,
    config: RewardCheckConfig,
    domains: Mapping[str, str],
    seed: int,
    context: StageContext,
    none_left: type[InputError] = InputError,
) -> HeldOut:
    scored = score_pairs(pairs, scorer, config, seed=seed)
    if scored.too_long:
        context.log.warning("reward_check: %d pairs are longer than max_tokens and left out", scored.too_long)
    if scored.pairs.is_empty():
        raise none_left(
            f"every one of the {len(pairs)} pairs is longer than reward_check.max_tokens ({config.max_tokens}); "
            "raise it"
        )
    _refuse_not_finite(scored.pairs, np.concatenate([scored.chosen, scored.rejected], axis=1))
    return held_out(scored.pairs, scored.chosen, scored.rejected, scored.lengths, config.ensemble, domains)


def _refuse_not_finite(pairs: pl.DataFrame, members: np.ndarray) -> None:
    broken = np.flatnonzero(~np.isfinite(members).all(axis=1))
    if len(broken):
        raise InputError(
            f"pair {pairs['pair_id'][int(broken[0])]}: a member's score is not finite, so of {len(broken)} pairs; "
            "train the reward model again, with a lower reward_model.learning_rate"
        )


def _fresh(
    rollouts: Artifact,
    grading: Artifact | None,
    reward_model: Artifact,
    scorer: Scorer,
    config: RewardCheckConfig,
    seed: int,
) -> Fresh:
    sampled = sample_prompts(rollouts.scan("rollouts"), config.max_fresh, derive_seed(seed, "fresh"))
    members = members_of(scorer, sampled["prompt_token_ids"].to_list(), sampled["token_ids"].to_list(), config)
    reward, uncertainty = aggregate(members, config.ensemble.how, config.ensemble.strength)
    others = other_scores(grading.scan("grades"), sampled, reward_model.fingerprint) if grading is not None else {}
    return Fresh(
        reward,
        uncertainty,
        sampled["length"].to_numpy(),
        np.unique(sampled["prompt_id"].to_numpy(), return_inverse=True)[1],
        others,
    )


def _iteration(rollouts: Artifact | None) -> int | None:
    """The one that sampled the rollouts."""
    if rollouts is None:
        return None
    newest: int | None = rollouts.scan("rollouts").select(pl.col("iteration").max()).collect().item()
    return newest


def _domains(prompts: Artifact | None) -> dict[str, str]:
    """prompt_id -> domain of a pool or a batch."""
    if prompts is None:
        return {}
    table = "batch" if "batch" in prompts.manifest.tables else "prompts"
    return dict(prompts.scan(table).select("prompt_id", "domain").collect().iter_rows())


def _calibration(check: Artifact | None) -> dict[str, Any] | None:
    return json.loads(check.file(CALIBRATION).read_text()) if check is not None else None
