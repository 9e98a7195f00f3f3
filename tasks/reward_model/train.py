"""Training a reward model: preferences in, a scorer and its held-out accuracy out."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from storage.errors import TooFew
from storage.fingerprints import derive_seed
from tasks._devices import choose_device
from tasks._engines.chat import load_tokenizer
from tasks._training.batching import microbatch_tokens
from tasks._training.drawn_pairs import drawn, of_sources
from tasks._training.heads import (
    HeadDescription,
    ScoringModel,
    fresh_judge,
    fresh_scoring_model,
    save_scoring_model,
    score_rows,
)
from tasks._training.judge_question import Question, ask_in
from tasks._training.loop import OptimizerSpec, StepMetrics, Surroundings, Work, steps_frame, train
from tasks._training.lora import LoraSpec, trainable_parameters
from tasks._training.scalar_heads import HeadSpec
from tasks.reward_model.config import RewardModelConfig
from tasks.reward_model.loss import LossNumbers, pair_loss
from tasks.reward_model.measure import PairScores, heldout_metrics, scored_frame, standardised
from tasks.reward_model.pairs import Pair, PairBatch, group_pairs, plan_steps, tokenize_pairs
from tasks.reward_model.terms import with_terms
from tasks.reward_model.weights import weighed

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
    policy: Path | None = None,
    quality: pl.DataFrame | None = None,
) -> RewardModel:
    """Fits heads and a LoRA adapter to a `Preference` frame; pairs of split `eval` only measure.

    The adapter comes on top of the weights in `base`, or of those with a policy's adapter `policy`; `quality` is a
    `PairQuality` frame. Scores are saved with their mean and deviation over training answers. A killed training called
    again with the same scratch folder resumes. Raises `TooFew` when fewer than `min_pairs` pairs can train, and
    when absolute scores are asked for and there are none.
    """
    tokenizer, device = load_tokenizer(base), choose_device(config.device)
    question = ask_in(tokenizer, config.question) if config.kind == "generative" else None
    read = _read_pairs(draw_pairs(preferences, quality, config, seed), tokenizer, question, config, seed)
    description = _description(tokenizer, question, config)
    model = _fresh(base, description, question, config, seed, device, policy)
    numbers = LossNumbers(config, read.tie_share).to(device)
    history = fit(
        model, numbers, read.training, config, seed, Surroundings(scratch, config.checkpoint_every_steps, progress)
    )
    known = _score_pairs(model, read.training[:NORMALISATION_PAIRS], config).reshape(-1, config.members)
    mean, std = known.mean(axis=0), np.where(known.std(axis=0) > 0, known.std(axis=0), 1.0)
    scale, shift = _human_affine(numbers, read.human)
    description = replace(
        description,
        score_mean=tuple(mean.tolist()),
        score_std=tuple(std.tolist()),
        human_scale=scale,
        human_shift=shift,
    )
    folder = scratch / "reward_model"
    save_scoring_model(model, description, folder, policy)
    scores = standardised(_score_pairs(model, read.heldout, config), mean, std)
    metrics = {"training_pairs": float(len(read.training)), "heldout_pairs": float(len(read.heldout))}
    metrics |= {"pairs_left_out": float(read.left_out)}
    metrics |= {f"train_{name}": float(np.mean([step[name] for step in history])) for name in ("loss", "accuracy")}
    metrics |= _tie_metrics(numbers) | heldout_metrics(read.heldout, scores, seed)
    return RewardModel(folder, steps_frame(history), scored_frame(read.heldout, scores), metrics)


@dataclass(frozen=True)
class _Read:
    """Pairs in token ids, how many were too long, the mean and deviation of people's scores in training."""

    training: list[Pair]
    heldout: list[Pair]
    left_out: int
    human: tuple[float, float]

    @property
    def tie_share(self) -> float:
        return sum(pair.tie for pair in self.training) / len(self.training)


def draw_pairs(
    preferences: pl.DataFrame, quality: pl.DataFrame | None, config: RewardModelConfig, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The pairs that train and the held-out ones, `with_terms`, each in an order drawn by seed.

    They are drawn before `quality` drops any: those that it judged are the same.
    """
    framed, pairs = with_terms(preferences, quality, config), of_sources(preferences, config.sources)
    limits = {"train": config.max_pairs, "eval": config.max_heldout_pairs}
    ids = [drawn(pairs, split, limit, seed).select("pair_id") for split, limit in limits.items()]
    training, heldout = (each.join(framed, on="pair_id", maintain_order="left") for each in ids)
    return training, heldout


def _read_pairs(
    sampled: tuple[pl.DataFrame, pl.DataFrame],
    tokenizer: Any,
    question: Question | None,
    config: RewardModelConfig,
    seed: int,
) -> _Read:
    """The pairs that train and the held-out ones. Raises `TooFew` for too few."""
    suffix = question.token_ids if question else ()
    training, heldout = (
        tokenize_pairs(frame, tokenizer, tokenizer.eos_token_id, config.max_tokens, suffix) for frame in sampled
    )
    if len(training) < config.min_pairs:
        raise TooFew(
            f"{len(training)} preference pairs to train on, expected at least {config.min_pairs} (min_pairs): "
            "collect more, or train the reward model in a later iteration"
        )
    left_out = sum(map(len, sampled)) - len(training) - len(heldout)
    human = _human_scale(training) if config.regression_weight else (0.0, 1.0)
    mean, std = human
    training = [replace(pair, human=((pair.human[0] - mean) / std, (pair.human[1] - mean) / std)) for pair in training]
    training = weighed(training, config.members, bootstrap=config.bootstrap, seed=derive_seed(seed, "weights"))
    return _Read(training, heldout, left_out, human)


def _human_scale(pairs: list[Pair]) -> tuple[float, float]:
    scores = np.array([pair.human for pair in pairs])
    known = scores[~np.isnan(scores)]
    if len(np.unique(known)) < 2:
        raise TooFew(
            f"regression_weight is set, and the {len(pairs)} training pairs hold {len(known)} absolute scores of "
            "people (human_score_chosen, human_score_rejected), none that differ: import some, or set it to 0"
        )
    return float(known.mean()), float(known.std())


def _description(tokenizer: Any, question: Question | None, config: RewardModelConfig) -> HeadDescription:
    return HeadDescription(
        tokenizer.eos_token_id,
        config.dtype,
        config.layers,
        kind=config.kind,
        members=config.members,
        suffix_token_ids=question.token_ids if question else (),
    )


def _fresh(
    base: Path,
    description: HeadDescription,
    question: Question | None,
    config: RewardModelConfig,
    seed: int,
    device: torch.device,
    policy: Path | None,
) -> ScoringModel:
    spec, drawn = LoraSpec(config.lora_rank, config.lora_alpha), derive_seed(seed, "head")
    if question:
        return fresh_judge(base, spec, description, question, seed=drawn, device=device, policy=policy)
    heads = HeadSpec(config.members, config.head, config.head_width, config.length_head)
    return fresh_scoring_model(base, spec, description, seed=drawn, device=device, heads=heads, policy=policy)


def fit(
    model: ScoringModel,
    numbers: LossNumbers,
    training: list[Pair],
    config: RewardModelConfig,
    seed: int,
    surroundings: Surroundings,
) -> list[StepMetrics]:
    """Trains the model in place; returns each step's metrics."""
    budget = microbatch_tokens(config.tokens_per_microbatch, model.device.type)
    steps = plan_steps(
        group_pairs(training, budget),
        batch_pairs=config.batch_pairs,
        epochs=config.epochs,
        tokens_per_microbatch=budget,
        seed=seed,
        as_rankings=config.loss == "plackett_luce",
    )
    work = Work(steps, pair_loss(model, numbers, config), _write_batch)
    optimizer = OptimizerSpec(config.learning_rate, config.warmup_steps, config.max_grad_norm, config.weight_decay)
    parameters = trainable_parameters(model) | {
        f"loss.{name}": parameter for name, parameter in trainable_parameters(numbers).items()
    }
    return train(parameters, work, optimizer, surroundings)


def _score_pairs(model: ScoringModel, pairs: list[Pair], config: RewardModelConfig) -> PairScores:
    """Raw scores of chosen and rejected answers."""
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    budget = microbatch_tokens(config.tokens_per_microbatch, model.device.type)
    scores = score_rows(model, prompts, answers, tokens_per_microbatch=budget)
    return scores.reshape(-1, 2, config.members)


Numbers = tuple[float, ...]


def _human_affine(numbers: LossNumbers, human: tuple[float, float]) -> tuple[Numbers | None, Numbers | None]:
    """Per member, from raw scores to people's units; nothing where that wasn't learned."""
    if numbers.affine is None:
        return None, None
    mean, std = human
    scale, shift = (values.detach().flatten().tolist() for values in numbers.scale_and_shift())
    return tuple(std * value for value in scale), tuple(std * value + mean for value in shift)


def _tie_metrics(numbers: LossNumbers) -> dict[str, float]:
    """How often two equal answers are a tie, over the members: tanh(threshold / 2), or nu / (2 + nu)."""
    if numbers.tie is None:
        return {}
    number = numbers.tie_number().detach()
    shares = torch.tanh(number / 2) if numbers.positive else torch.sigmoid(number - np.log(2.0))
    return {"tie_probability": float(shares.mean())}


def _write_batch(pairs: PairBatch, path: Path) -> None:
    content = [
        {"prompt_token_ids": group.prompt.tolist(), "answers": [answer.tolist() for answer in group.responses]}
        for group in pairs.groups
    ]
    path.write_text(json.dumps(content, indent=1))
