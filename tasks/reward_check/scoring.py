"""Preference rows and rollouts through a reward model: token ids in, its members' standardised scores out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float

from storage.fingerprints import derive_seed
from tasks._engines.chat import load_tokenizer, render
from tasks.reward_check.config import RewardCheckConfig

Members = Float[np.ndarray, "rows members"]
Tokens = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Scorer:
    """Where a reward model lies: its own folder, the weights that it comes on top of, the base with the tokenizer."""

    folder: Path
    weights: Path
    tokenizer: Path


@dataclass(frozen=True)
class ScoredPairs:
    """The pairs that were scored: their rows, both sides' members, the answers' lengths in tokens without the end.

    `too_long` counts those that were left out.
    """

    pairs: pl.DataFrame
    chosen: Members
    rejected: Members
    lengths: Float[np.ndarray, "pairs 2"]
    too_long: int


def score_pairs(pairs: pl.DataFrame, scorer: Scorer, config: RewardCheckConfig, *, seed: int) -> ScoredPairs:
    """Members' scores of both answers of `Preference` rows, `max_pairs` of them at most, drawn by seed.

    Answers that several pairs share are scored once.
    """
    order = np.random.default_rng(derive_seed(seed, "sample")).permutation(len(pairs))[: config.max_pairs]
    drawn = pairs[np.sort(order).tolist()]
    tokenizer = load_tokenizer(scorer.tokenizer)
    prompts = [render(tokenizer, messages) for messages in drawn["messages"].to_list()]
    texts = drawn["chosen"].to_list() + drawn["rejected"].to_list()
    encoded: Tokens = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    chosen, rejected = encoded[: len(drawn)], encoded[len(drawn) :]
    # One end token an answer is scored too.
    sizes = np.array([len(p) + len(c) + len(r) + 2 for p, c, r in zip(prompts, chosen, rejected, strict=True)])
    kept = np.flatnonzero(sizes <= config.max_tokens) if len(sizes) else np.zeros(0, dtype=np.int64)
    rows = [(tuple(prompts[each]), tuple(side[each])) for side in (chosen, rejected) for each in kept]
    distinct = list(dict.fromkeys(rows))
    place = {row: index for index, row in enumerate(distinct)}
    members = members_of(scorer, [row[0] for row in distinct], [row[1] for row in distinct], config)
    members = members[[place[row] for row in rows]]
    lengths = np.array([len(answer) for _, answer in rows], dtype=np.float64).reshape(2, -1).T
    return ScoredPairs(
        drawn[kept.tolist()], members[: len(kept)], members[len(kept) :], lengths, len(drawn) - len(kept)
    )


def members_of(scorer: Scorer, prompts: Tokens, answers: Tokens, config: RewardCheckConfig) -> Members:
    """Each member's standardised score, in the order of the rows."""
    from tasks._training.reward_models import score  # loads torch

    where = scorer.weights, scorer.folder
    budget = config.tokens_per_microbatch
    return score(*where, prompts, answers, device=config.device, tokens_per_microbatch=budget).standardised
