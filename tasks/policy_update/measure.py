"""What a policy says of stored rollouts: log-probabilities, and values where there is a critic."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from tasks._training.batching import PromptGroup, group_rows, microbatch_tokens, plan_microbatches
from tasks._training.logprobs import token_logprobs
from tasks._training.memory import freed_memory_kept
from tasks._training.packing import pack
from tasks._training.parallel import ALONE, World, deal
from tasks._training.value_head import token_values
from tasks.policy_update.config import PolicyUpdateConfig
from tasks.policy_update.credit import PerToken
from tasks.policy_update.rows import TrainingRows

ByRow = dict[int, np.ndarray]


@freed_memory_kept()
def recompute(
    model: Any,
    rows: TrainingRows,
    chosen: Sequence[int],
    config: PolicyUpdateConfig,
    *,
    head: nn.Linear | None = None,
    world: World = ALONE,
) -> tuple[ByRow, ByRow]:
    """Row number -> the log-probabilities (nat, one per token) that `model` gives the row's tokens, and the values.

    The processes of `world` share the work; each gets all of it.
    """
    device = next(model.parameters()).device
    budget = microbatch_tokens(config.tokens_per_microbatch, device.type)
    groups = group_rows(
        [rows.prompts[row] for row in chosen],
        [rows.responses[row] for row in chosen],
        max_tokens=budget,
        share_prefix=config.share_prefix,
    )
    logprobs: ByRow = {}
    values: ByRow = {}
    planned = plan_microbatches(groups, budget)
    for turn in deal(planned, microbatch_size, world):
        batch = pack(planned[turn.number], pad_token_id=0, device=device, last_tokens=False)
        numbers = [chosen[index] for index in batch.rows]
        temperatures = torch.tensor(rows.temperatures[numbers], dtype=torch.float32, device=device)
        with torch.no_grad():
            found = token_logprobs(model, batch, temperatures)
            logprobs |= _by_row(numbers, found.logprobs, rows)
            if head is not None:
                spread = torch.zeros_like(found.logprobs).masked_scatter(batch.mask, token_values(head, found.hidden))
                values |= _by_row(numbers, spread, rows)
    parts = world.gather((logprobs, values))
    return {r: line for part, _ in parts for r, line in part.items()}, {
        r: line for _, part in parts for r, line in part.items()
    }


def recompute_all(
    model: Any,
    rows: TrainingRows,
    used: Sequence[int],
    config: PolicyUpdateConfig,
    *,
    head: nn.Linear | None = None,
    world: World = ALONE,
) -> tuple[PerToken, PerToken]:
    """The same as one line per row, in their order; zeros for rows that aren't `used` and without a head."""
    logprobs, values = recompute(model, rows, used, config, head=head, world=world)
    empty = [np.zeros(len(response), dtype=np.float32) for response in rows.responses]
    return [logprobs.get(row, line) for row, line in enumerate(empty)], [
        values.get(row, line) for row, line in enumerate(empty)
    ]


def microbatch_size(groups: Sequence[PromptGroup]) -> float:
    """Packed tokens with their padding: what a micro-batch costs."""
    return float(len(groups) * max(group.length for group in groups))


def _by_row(numbers: list[int], padded: torch.Tensor, rows: TrainingRows) -> ByRow:
    lines = padded.float().cpu().numpy()
    return {number: line[: len(rows.responses[number])] for number, line in zip(numbers, lines, strict=True)}
