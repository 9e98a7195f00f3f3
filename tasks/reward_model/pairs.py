"""Preference pairs as packed rows: a prompt once, then the answers to it that its pairs compare."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from storage.fingerprints import derive_seed
from tasks._engines.chat import render
from tasks._training.batching import PromptGroup, TokenIds, plan_microbatches


@dataclass(frozen=True)
class Pair:
    """A pair in token ids; both answers end in the end token."""

    pair_id: str
    cluster_id: str
    prompt: TokenIds
    chosen: TokenIds
    rejected: TokenIds


@dataclass(frozen=True)
class PairUnit:
    """A prompt, its distinct answers and the pairs among them as (chosen row, rejected row): never split."""

    group: PromptGroup
    pairs: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class PairBatch:
    """Units that are computed together, and the number of pairs of the whole optimizer step."""

    groups: list[PromptGroup]
    pairs: list[tuple[int, int]]
    pairs_in_step: int


def tokenize_pairs(preferences: pl.DataFrame, tokenizer: Any, end_token_id: int, max_tokens: int) -> list[Pair]:
    """`Preference` rows as token ids. Pairs longer than `max_tokens` in all are left out."""
    pairs = []
    texts = preferences["chosen"].to_list() + preferences["rejected"].to_list()
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    answers = [np.array([*ids, end_token_id], dtype=np.int32) for ids in encoded]
    for number, row in enumerate(preferences.iter_rows(named=True)):
        prompt = np.array(render(tokenizer, row["messages"]), dtype=np.int32)
        pair = Pair(row["pair_id"], row["cluster_id"], prompt, answers[number], answers[len(preferences) + number])
        if len(prompt) + len(pair.chosen) + len(pair.rejected) <= max_tokens:
            pairs.append(pair)
    return pairs


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
    return units


def plan_steps(
    units: Sequence[PairUnit], *, batch_pairs: int, epochs: int, tokens_per_microbatch: int, seed: int
) -> list[list[PairBatch]]:
    """Optimizer steps of about `batch_pairs` pairs from shuffled units, each cut into micro-batches."""
    steps: list[list[PairUnit]] = []
    for epoch in range(epochs):
        order = np.random.default_rng(derive_seed(seed, "pairs", epoch)).permutation(len(units))
        steps.append([])
        for index in order:
            if sum(len(unit.pairs) for unit in steps[-1]) >= batch_pairs:
                steps.append([])
            steps[-1].append(units[index])
    return [_cut(members, tokens_per_microbatch) for members in steps if members]


def _cut(units: list[PairUnit], tokens_per_microbatch: int) -> list[PairBatch]:
    by_row = {unit.group.rows[0]: unit for unit in units}
    in_step = sum(len(unit.pairs) for unit in units)
    planned = plan_microbatches([unit.group for unit in units], tokens_per_microbatch)
    return [
        PairBatch(groups, [pair for group in groups for pair in by_row[group.rows[0]].pairs], in_step)
        for groups in planned
    ]
