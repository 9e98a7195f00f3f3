"""Which rows are computed together in which optimizer step, for objectives on rows and on pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool

from tasks._maths.objectives import AGGREGATES, StepRows
from tasks._training.batching import PromptGroup, group_rows, plan_microbatches
from tasks._training.packing import PackedBatch
from tasks.policy_update.config import PolicyUpdateConfig
from tasks.policy_update.rows import TrainingRows, deal_steps

Pair = tuple[int, int]


@dataclass(frozen=True)
class Microbatch:
    """Groups that are computed together, the optimizer step they belong to, and each row's denominator by row.

    For objectives on pairs every group is a pair: the chosen row, then the rejected one.
    """

    groups: list[PromptGroup]
    step: int
    denominators: dict[int, float]

    def rows_of(self, batch: PackedBatch) -> list[float]:
        """The denominators in the order of a packed batch's rows."""
        return [self.denominators[row] for row in batch.rows]


def plan_row_steps(
    rows: TrainingRows, trained: Bool[np.ndarray, " rows"], config: PolicyUpdateConfig, *, seed: int, budget: int
) -> list[list[Microbatch]]:
    """The micro-batches, of `budget` tokens at most, of every optimizer step.

    Steps without a row that could teach anything are left out. Rows that aren't `trained` aren't computed, but
    they count: the denominators are those of all rows of a step. Not so with a likelihood, which is one of the
    chosen rows alone (RAFT: -1/T sum log pi over the best answers).
    """
    steps: list[list[Microbatch]] = []
    dealt = deal_steps(rows.groups, optimizer_steps=config.optimizer_steps, epochs=config.epochs, seed=seed)
    for members in dealt:
        if config.objective == "likelihood":
            members = members[trained[members]]
        of_step = (torch.from_numpy(each[members]) for each in (rows.lengths, rows.groups, rows.weights))
        denominators = AGGREGATES[config.aggregate](StepRows(*of_step), config.max_tokens)
        by_row = dict(zip(members.tolist(), denominators.tolist(), strict=True))
        used = members[trained[members]].tolist()
        if used:
            steps.append(_cut(_grouped(rows, used, config, budget), len(steps), by_row, budget))
    return steps


def plan_pair_steps(
    rows: TrainingRows, pairs: Sequence[Pair], config: PolicyUpdateConfig, *, seed: int, budget: int
) -> list[list[Microbatch]]:
    """The same for pairs: those of one group share a step, and a step's denominator is its number of pairs."""
    chosen = np.array([rows.groups[better] for better, _ in pairs], dtype=np.int64)
    _, groups = np.unique(chosen, return_inverse=True)
    steps: list[list[Microbatch]] = []
    dealt = deal_steps(groups, optimizer_steps=config.optimizer_steps, epochs=config.epochs, seed=seed)
    for members in dealt:
        together = [_pair_group(rows, pairs[index]) for index in members]
        by_row = {row: float(len(members)) for group in together for row in group.rows}
        steps.append(_cut(together, len(steps), by_row, budget))
    return steps


def _cut(groups: list[PromptGroup], step: int, by_row: dict[int, float], budget: int) -> list[Microbatch]:
    planned = plan_microbatches(groups, budget)
    return [Microbatch(part, step, {row: by_row[row] for group in part for row in group.rows}) for part in planned]


def _grouped(rows: TrainingRows, used: list[int], config: PolicyUpdateConfig, budget: int) -> list[PromptGroup]:
    groups = group_rows(
        [rows.prompts[row] for row in used],
        [rows.responses[row] for row in used],
        max_tokens=budget,
        share_prefix=config.share_prefix,
    )
    return [PromptGroup(group.prompt, group.responses, [used[index] for index in group.rows]) for group in groups]


def _pair_group(rows: TrainingRows, pair: Pair) -> PromptGroup:
    return PromptGroup(rows.prompts[pair[0]], [rows.responses[row] for row in pair], list(pair))
