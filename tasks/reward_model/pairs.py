"""Preference pairs as packed rows: a prompt once, then the answers to it that its pairs compare."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from storage.fingerprints import derive_seed
from tasks._engines.chat import render
from tasks._training.batching import PromptGroup, TokenIds, plan_microbatches
from tasks.reward_model.rankings import ranking_of


@dataclass(frozen=True)
class Pair:
    """A pair in token ids; both answers end in the end token, or in the question that a judge is asked.

    `margin` is in nats, `smoothing` the probability that the label is swapped, `human` people's absolute scores of
    the chosen and the rejected answer (NaN where there is none), `weights` what each member makes of the pair.
    """

    pair_id: str
    cluster_id: str
    prompt: TokenIds
    chosen: TokenIds
    rejected: TokenIds
    tie: bool = False
    margin: float = 0.0
    smoothing: float = 0.0
    human: tuple[float, float] = (math.nan, math.nan)
    weights: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class PairUnit:
    """A prompt, its distinct answers and the pairs among them as (chosen row, rejected row): never split."""

    group: PromptGroup
    pairs: list[tuple[int, int]] = field(default_factory=list)
    terms: list[Pair] = field(default_factory=list)

    @property
    def ranking(self) -> list[int] | None:
        """Its rows, best first, where the pairs are one ranking without ties or doubts."""
        plain = not any(pair.tie or pair.smoothing for pair in self.terms)
        return ranking_of(self.pairs) if plain else None


@dataclass(frozen=True)
class Ranking:
    """Rows of one prompt's answers, best first, and each member's weight."""

    rows: list[int]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class PairBatch:
    """Units that are computed together.

    `terms` are the pairs that `pairs` numbers the rows of. A ranking of K answers counts as K - 1 pairs in
    `pairs_in_step`, the number in the whole optimizer step; `step` are the groups of all its micro-batches.
    """

    groups: list[PromptGroup]
    pairs: list[tuple[int, int]]
    pairs_in_step: int
    terms: list[Pair] = field(default_factory=list)
    rankings: list[Ranking] = field(default_factory=list)
    step: list[list[PromptGroup]] = field(default_factory=list)


def tokenize_pairs(
    preferences: pl.DataFrame,
    tokenizer: Any,
    end_token_id: int,
    max_tokens: int,
    suffix: Sequence[int] = (),
) -> list[Pair]:
    """`Preference` rows, perhaps `with_terms`, as token ids; `suffix` follows each answer's end token.

    Pairs longer than `max_tokens` in all are left out.
    """
    pairs = []
    texts = preferences["chosen"].to_list() + preferences["rejected"].to_list()
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    answers = [np.array([*ids, end_token_id, *suffix], dtype=np.int32) for ids in encoded]
    for number, row in enumerate(preferences.iter_rows(named=True)):
        pair = Pair(
            row["pair_id"],
            row["cluster_id"],
            np.array(render(tokenizer, row["messages"]), dtype=np.int32),
            answers[number],
            answers[len(preferences) + number],
            tie=row.get("tie") or False,
            margin=row.get("margin", 0.0),
            smoothing=row.get("smoothing", 0.0),
            human=(_known(row["human_score_chosen"]), _known(row["human_score_rejected"])),
        )
        if len(pair.prompt) + len(pair.chosen) + len(pair.rejected) <= max_tokens:
            pairs.append(pair)
    return pairs


def _known(score: float | None) -> float:
    return math.nan if score is None else score


def group_pairs(pairs: Sequence[Pair], max_tokens: int) -> list[PairUnit]:
    """Pairs of one prompt as units; an answer that several pairs share is computed once.

    Rows number the answers over all units. All pairs of a prompt are in one unit, and so in one optimizer step
    (InstructGPT, arXiv 2203.02155, section 3.5), unless they exceed `max_tokens`.
    """
    units: list[PairUnit] = []
    open_units: dict[bytes, tuple[PairUnit, dict[bytes, int]]] = {}
    next_row = 0
    for pair in pairs:
        key = pair.prompt.tobytes()
        unit, known = open_units.get(key, (None, {}))
        fresh = {a.tobytes(): a for a in (pair.chosen, pair.rejected) if a.tobytes() not in known}
        if unit is None or unit.group.length + sum(map(len, fresh.values())) > max_tokens:
            unit, known = PairUnit(PromptGroup(pair.prompt, [], [])), {}
            fresh = {answer.tobytes(): answer for answer in (pair.chosen, pair.rejected)}
            open_units[key] = (unit, known)
            units.append(unit)
        for name, answer in fresh.items():
            known[name] = next_row
            unit.group.responses.append(answer)
            unit.group.rows.append(next_row)
            next_row += 1
        unit.pairs.append((known[pair.chosen.tobytes()], known[pair.rejected.tobytes()]))
        unit.terms.append(pair)
    return units


def plan_steps(
    units: Sequence[PairUnit],
    *,
    batch_pairs: int,
    epochs: int,
    tokens_per_microbatch: int,
    seed: int,
    as_rankings: bool = False,
) -> list[list[PairBatch]]:
    """Optimizer steps of about `batch_pairs` pairs from shuffled units, each cut into micro-batches.

    With `as_rankings` the pairs of a unit that are one ranking become it; other units keep their pairs.
    """
    steps: list[list[PairUnit]] = []
    for epoch in range(epochs):
        order = np.random.default_rng(derive_seed(seed, "pairs", epoch)).permutation(len(units))
        steps.append([])
        for index in order:
            if sum(len(unit.pairs) for unit in steps[-1]) >= batch_pairs:
                steps.append([])
            steps[-1].append(units[index])
    return [_cut(members, tokens_per_microbatch, as_rankings) for members in steps if members]


def _cut(units: list[PairUnit], tokens_per_microbatch: int, as_rankings: bool) -> list[PairBatch]:
    by_row = {unit.group.rows[0]: (unit, unit.ranking if as_rankings else None) for unit in units}
    in_step = sum(len(ranked) - 1 if ranked else len(unit.pairs) for unit, ranked in by_row.values())
    planned = plan_microbatches([unit.group for unit in units], tokens_per_microbatch)
    batches = []
    for groups in planned:
        members = [by_row[group.rows[0]] for group in groups]
        paired = [unit for unit, ranked in members if not ranked]
        batches.append(
            PairBatch(
                groups,
                [pair for unit in paired for pair in unit.pairs],
                in_step,
                terms=[pair for unit in paired for pair in unit.terms],
                rankings=[Ranking(ranked, unit.terms[0].weights) for unit, ranked in members if ranked],
                step=planned,
            )
        )
    return batches
