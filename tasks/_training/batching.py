"""Which rows are computed together: rows of one prompt share it, micro-batches stay under a token budget.

All of it is deterministic: the same rows in the same order make the same micro-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

CPU_TOKENS, GPU_TOKENS = 1024, 16_384
TokenIds = Int[np.ndarray, " tokens"]


@dataclass(frozen=True)
class PromptGroup:
    """A prompt and some of the responses to it; `rows[i]` is the caller's index of `responses[i]`."""

    prompt: TokenIds
    responses: list[TokenIds]
    rows: list[int]

    @property
    def length(self) -> int:
        """Tokens of the packed row: the prompt once, then every response."""
        return len(self.prompt) + sum(len(response) for response in self.responses)


def microbatch_tokens(configured: int | None, device_type: str) -> int:
    """The token budget of a micro-batch: the configured one, else what suits the device.

    On a CPU small micro-batches are the faster ones: their activations fit into memory that the process has
    already, and touching fresh memory costs more than what a larger matrix product saves.
    """
    return configured or (CPU_TOKENS if device_type == "cpu" else GPU_TOKENS)


def group_rows(
    prompts: Sequence[TokenIds],
    responses: Sequence[TokenIds],
    *,
    max_tokens: int,
    share_prefix: bool = True,
) -> list[PromptGroup]:
    """Rows with equal prompts as groups of at most `max_tokens` packed tokens, in order of first appearance.

    A single row longer than `max_tokens` is a group of its own: nothing is truncated or left out. Without
    `share_prefix` every row is a group of its own.
    """
    groups: list[PromptGroup] = []
    open_groups: dict[bytes, PromptGroup] = {}
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        key = prompt.tobytes()
        group = open_groups.get(key)
        if group is None or not share_prefix or group.length + len(response) > max_tokens:
            group = PromptGroup(prompt, [], [])
            open_groups[key] = group
            groups.append(group)
        group.responses.append(response)
        group.rows.append(row)
    return groups


def plan_microbatches(groups: Sequence[PromptGroup], tokens_per_microbatch: int) -> list[list[PromptGroup]]:
    """Groups sorted by length, longest first, cut greedily so that longest x count stays under the budget.

    Sorting keeps padding small; longest first shows at once whether the memory suffices. A group that
    exceeds the budget by itself makes a micro-batch of its own.
    """
    ordered = sorted(groups, key=lambda group: (-group.length, group.rows[0]))
    microbatches: list[list[PromptGroup]] = []
    for group in ordered:
        current = microbatches[-1] if microbatches else None
        if current and current[0].length * (len(current) + 1) <= tokens_per_microbatch:
            current.append(group)
        else:
            microbatches.append([group])
    return microbatches
