"""Packed rows: a prompt once, then every response to it, each blind to the others.

A group's samples share their prompt. In the row `prompt | response 1 | response 2 | ...` each response
attends to the prompt and to itself only, and its positions go on from the prompt's end: the hidden states
equal those of `prompt | response i` computed alone, and the prompt is computed once instead of n times.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tasks._training.batching import PromptGroup

PROMPT, PADDING = -1, -2


@dataclass(frozen=True)
class PackedBatch:
    """Packed rows padded to one length, and where in them to look for each response.

    `rows` are the caller's indices of the responses, in the order of the other fields' `rows` axis.
    `sources` and `last` index the flattened `batch * time` axis: `sources` is the position whose hidden state
    predicts a response's token, `last` the position of a response's last token. Where `mask` is false,
    `sources` and `targets` are 0 and mean nothing.
    """

    input_ids: Int[Tensor, "batch time"]
    position_ids: Int[Tensor, "batch time"]
    attention_mask: Bool[Tensor, "batch 1 time time"]
    rows: list[int]
    sources: Int[Tensor, "rows length"]
    targets: Int[Tensor, "rows length"]
    mask: Bool[Tensor, "rows length"]
    last: Int[Tensor, " rows"]


def pack(groups: list[PromptGroup], *, pad_token_id: int, device: torch.device) -> PackedBatch:
    """The packed rows of one micro-batch. Prompts and responses must not be empty."""
    time = max(group.length for group in groups)
    input_ids = np.full((len(groups), time), pad_token_id, dtype=np.int64)
    position_ids = np.zeros((len(groups), time), dtype=np.int64)
    segments = np.full((len(groups), time), PADDING, dtype=np.int64)
    responses = [response for group in groups for response in group.responses]
    length = max(len(response) for response in responses)
    sources = np.zeros((len(responses), length), dtype=np.int64)
    targets = np.zeros((len(responses), length), dtype=np.int64)
    mask = np.zeros((len(responses), length), dtype=bool)
    row = 0
    for line, group in enumerate(groups):
        starts = _fill_line(group, input_ids[line], position_ids[line], segments[line])
        for start, response in zip(starts, group.responses, strict=True):
            size = len(response)
            sources[row, 0] = line * time + len(group.prompt) - 1
            sources[row, 1:size] = line * time + start + np.arange(size - 1)
            targets[row, :size] = response
            mask[row, :size] = True
            row += 1
    last = _last_positions(groups, time)
    tensors = [torch.from_numpy(array).to(device) for array in (input_ids, position_ids, sources, targets, mask, last)]
    return PackedBatch(
        input_ids=tensors[0],
        position_ids=tensors[1],
        attention_mask=_attention_mask(torch.from_numpy(segments).to(device)),
        rows=[index for group in groups for index in group.rows],
        sources=tensors[2],
        targets=tensors[3],
        mask=tensors[4],
        last=tensors[5],
    )


def _fill_line(
    group: PromptGroup,
    input_ids: Int[np.ndarray, " time"],
    position_ids: Int[np.ndarray, " time"],
    segments: Int[np.ndarray, " time"],
) -> list[int]:
    """Writes one packed row; returns where each response starts in it."""
    prompt_length = len(group.prompt)
    input_ids[:prompt_length] = group.prompt
    position_ids[:prompt_length] = np.arange(prompt_length)
    segments[:prompt_length] = PROMPT
    starts, start = [], prompt_length
    for number, response in enumerate(group.responses):
        end = start + len(response)
        input_ids[start:end] = response
        position_ids[start:end] = prompt_length + np.arange(len(response))
        segments[start:end] = number
        starts.append(start)
        start = end
    return starts


def _last_positions(groups: list[PromptGroup], time: int) -> Int[np.ndarray, " rows"]:
    ends = []
    for line, group in enumerate(groups):
        lengths = np.array([len(response) for response in group.responses])
        ends.append(line * time + len(group.prompt) + np.cumsum(lengths) - 1)
    return np.concatenate(ends)


def _attention_mask(segments: Int[Tensor, "batch time"]) -> Bool[Tensor, "batch 1 time time"]:
    """True where a position may look: earlier in its own segment or in the prompt. Padding looks at itself."""
    time = segments.shape[1]
    earlier = torch.ones(time, time, dtype=torch.bool, device=segments.device).tril()
    query, key = segments[:, :, None], segments[:, None, :]
    return ((query == key) | ((key == PROMPT) & (query >= 0)))[:, None] & earlier
