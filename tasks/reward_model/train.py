"""Training a reward model: preferences in, a scorer and its held-out accuracy out."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from storage.errors import InputError
from storage.fingerprints import derive_seed
from tasks._devices import choose_device
from tasks._engines.chat import load_tokenizer
from tasks._maths.intervals import bootstrap_mean
from tasks._maths.metrics import Mean, Metric, Total
from tasks._maths.objectives import LossOutputs
from tasks._maths.pairwise import bradley_terry
from tasks._training.batching import microbatch_tokens
from tasks._training.heads import (
    HeadDescription,
    ScoringModel,
    fresh_scoring_model,
    save_scoring_model,
    score_rows,
)
from tasks._training.loop import OptimizerSpec, StepMetrics, Surroundings, Work, steps_frame, train
from tasks._training.lora import LoraSpec, trainable_parameters
from tasks._training.packing import pack
from tasks.reward_model.config import RewardModelConfig
from tasks.reward_model.pairs import Pair, PairBatch, group_pairs, plan_steps, tokenize_pairs

Progress = Callable[[int, int, str], None]
NORMALISATION_PAIRS = 64


@dataclass(frozen=True)
class RewardModel:
    """The scorer's folder, `TrainingStep` and `ScoredPair` frames (held-out pairs), and metrics."""

    folder: Path
    steps: pl.DataFrame
    scored_pairs: pl.DataFrame
    metrics: dict[str, float]


def train_reward_model(
    preferences: pl.DataFrame,
    base: Path,
    config: RewardModelConfig,
    *,
    seed: int,
    scratch: Path,
    progress: Progress,
) -> RewardModel:
    """Fits a scalar head and a LoRA adapter to a `Preference` frame; pairs of split `eval` only measure.

    Scores are saved with their mean and deviation over training answers. A killed training called again with
    the same scratch folder resumes. Raises `InputError` when fewer than `min_pairs` pairs can train.
    """
    tokenizer = load_tokenizer(base)
    training, heldout = _read_pairs(preferences, tokenizer, config, seed)
    if len(training) < config.min_pairs:
        raise InputError(
            f"{len(training)} preference pairs to train on, expected at least {config.min_pairs} (min_pairs): "
            "collect more, or train the reward model in a later iteration"
        )
    description = HeadDescription(tokenizer.eos_token_id, config.dtype, config.layers)
    spec, device = LoraSpec(config.lora_rank, config.lora_alpha), choose_device(config.device)
    model = fresh_scoring_model(base, spec, description, seed=derive_seed(seed, "head"), device=device)
    history = _fit(model, training, config, seed, Surroundings(scratch, config.checkpoint_every_steps, progress))
    known = _score_pairs(model, training[:NORMALISATION_PAIRS], config)
    description = replace(description, score_mean=float(known.mean()), score_std=float(known.std()) or 1.0)
    save_scoring_model(model, description, scratch / "reward_model")
    scores = _score_pairs(model, heldout, config)
    metrics = {"training_pairs": float(len(training)), "heldout_pairs": float(len(heldout))}
    metrics |= {f"train_{name}": float(np.mean([step[name] for step in history])) for name in ("loss", "accuracy")}
    metrics |= _heldout_metrics(heldout, scores, seed)
    return RewardModel(scratch / "reward_model", steps_frame(history), _scored(heldout, scores), metrics)


def _read_pairs(
    preferences: pl.DataFrame, tokenizer: Any, config: RewardModelConfig, seed: int
) -> tuple[list[Pair], list[Pair]]:
    """The pairs that train and the held-out ones."""
    training, heldout = (
        tokenize_pairs(_sampled(preferences, split, limit, seed), tokenizer, tokenizer.eos_token_id, config.max_tokens)
        for split, limit in (("train", config.max_pairs), ("eval", config.max_heldout_pairs))
    )
    return training, heldout


def _fit(
    model: ScoringModel, training: list[Pair], config: RewardModelConfig, seed: int, surroundings: Surroundings
) -> list[StepMetrics]:
    """Trains the model in place; returns each step's metrics."""
    budget = microbatch_tokens(config.tokens_per_microbatch, model.head.weight.device.type)
    steps = plan_steps(
        group_pairs(training, budget),
        batch_pairs=config.batch_pairs,
        epochs=config.epochs,
        tokens_per_microbatch=budget,
        seed=seed,
    )
    work = Work(steps, _loss_function(model, config), _write_batch)
    optimizer = OptimizerSpec(config.learning_rate, config.warmup_steps, config.max_grad_norm, config.weight_decay)
    return train(trainable_parameters(model), work, optimizer, surroundings)


def _sampled(preferences: pl.DataFrame, split: str, limit: int, seed: int) -> pl.DataFrame:
    """The pairs of a split, in an order drawn by seed, `limit` at most."""
    found = preferences.filter(pl.col("split") == split).sort("pair_id")
    order = np.random.default_rng(derive_seed(seed, "sample", split)).permutation(len(found))[:limit]
    return found[order.tolist()]


def _loss_function(model: ScoringModel, config: RewardModelConfig) -> Callable[[PairBatch], LossOutputs]:
    def loss(pairs: PairBatch) -> LossOutputs:
        batch = pack(pairs.groups, pad_token_id=0, device=model.head.weight.device)
        scores = model(batch)
        position = {row: index for index, row in enumerate(batch.rows)}
        chosen, rejected = (scores[[position[pair[side]] for pair in pairs.pairs]] for side in (0, 1))
        losses = bradley_terry(chosen, rejected, centering=config.centering)
        loss_sum = losses.sum() / pairs.pairs_in_step
        margin, count = (chosen - rejected).detach(), len(pairs.pairs)
        metrics: dict[str, Metric] = {
            "loss": Total(float(loss_sum.detach())),
            "accuracy": Mean(float((margin > 0).sum() + 0.5 * (margin == 0).sum()), count),
            "margin": Mean(float(margin.sum()), count),
        }
        return LossOutputs(loss_sum, metrics)

    return loss


def _score_pairs(model: ScoringModel, pairs: list[Pair], config: RewardModelConfig) -> Float[np.ndarray, "pairs 2"]:
    """Raw scores of chosen and rejected answers."""
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    budget = microbatch_tokens(config.tokens_per_microbatch, model.head.weight.device.type)
    scores = score_rows(model, prompts, answers, tokens_per_microbatch=budget)
    return scores.reshape(-1, 2)


def _heldout_metrics(heldout: list[Pair], scores: Float[np.ndarray, "pairs 2"], seed: int) -> dict[str, float]:
    """Accuracy (ties count half) with its 95 % interval over clusters of prompts; nothing without held-out pairs."""
    if not heldout:
        return {}
    right = (scores[:, 0] > scores[:, 1]) + 0.5 * (scores[:, 0] == scores[:, 1])
    clusters = np.array([pair.cluster_id for pair in heldout])
    interval = bootstrap_mean(right, clusters, seed=derive_seed(seed, "accuracy"))
    return {
        "heldout_accuracy": interval.estimate,
        "heldout_accuracy_low": interval.low,
        "heldout_accuracy_high": interval.high,
        "heldout_margin": float((scores[:, 0] - scores[:, 1]).mean()),
    }


def _scored(heldout: list[Pair], scores: Float[np.ndarray, "pairs 2"]) -> pl.DataFrame:
    ids = pl.Series("pair_id", [pair.pair_id for pair in heldout], dtype=pl.String)
    return pl.DataFrame({"pair_id": ids, "chosen_score": scores[:, 0], "rejected_score": scores[:, 1]})


def _write_batch(pairs: PairBatch, path: Path) -> None:
    content = [
        {"prompt_token_ids": group.prompt.tolist(), "answers": [answer.tolist() for answer in group.responses]}
        for group in pairs.groups
    ]
    path.write_text(json.dumps(content, indent=1))
