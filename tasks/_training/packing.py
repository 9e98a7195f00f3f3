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

from tasks._training.attention import Segments, Span, segment
from tasks._training.batching import PromptGroup, TokenIds

PROMPT, PADDING = -1, -2


@dataclass(frozen=True)
class PackedBatch:
    """Packed rows padded to one length, and where in them to look for each response.

    `rows` are the caller's indices of the responses, in the order of the other fields' `rows` axis.
    `sources` and `last` index the flattened `batch * time` axis: `sources` is the position whose hidden state
    predicts a response's token, `last` the position of a response's last token, if that was packed. Where `mask`
    is false, `sources` and `targets` are 0 and mean nothing. `segments` and `dense_mask` say the same: attention
    takes either.
    """

    input_ids: Int[Tensor, "batch time"]
    position_ids: Int[Tensor, "batch time"]
    segment_ids: Int[Tensor, "batch time"]
    segments: Segments
    rows: list[int]
    sources: Int[Tensor, "rows length"]
    targets: Int[Tensor, "rows length"]
    mask: Bool[Tensor, "rows length"]
    last: Int[Tensor, " rows"]

    def dense_mask(self) -> Bool[Tensor, "batch 1 time time"]:
        """True where a position may look: earlier in its own segment or in the prompt. Padding looks at itself."""
        time = self.segment_ids.shape[1]
        earlier = torch.ones(time, time, dtype=torch.bool, device=self.segment_ids.device).tril()
        query, key = self.segment_ids[:, :, None], self.segment_ids[:, None, :]
        return ((query == key) | ((key == PROMPT) & (query >= 0)))[:, None] & earlier


def pack(
    groups: list[PromptGroup], *, pad_token_id: int, device: torch.device, last_tokens: bool = True
) -> PackedBatch:
    """The packed rows of one micro-batch. Prompts and responses must not be empty.

    A response's last token predicts nothing: without `last_tokens` it is a target only and isn't computed. Scalar
    heads read its state.
    """
    left_out = 0 if last_tokens else 1
    time = max(group.length - left_out * len(group.responses) for group in groups)
    input_ids = np.full((len(groups), time), pad_token_id, dtype=np.int64)
    position_ids = np.zeros((len(groups), time), dtype=np.int64)
    segment_ids = np.full((len(groups), time), PADDING, dtype=np.int64)
    responses = [response for group in groups for response in group.responses]
    length = max(len(response) for response in responses)
    sources = np.zeros((len(responses), length), dtype=np.int64)
    targets = np.zeros((len(responses), length), dtype=np.int64)
    mask = np.zeros((len(responses), length), dtype=bool)
    spans: list[Span] = []
    prompt_of: list[int] = []
    row = 0
    for line, group in enumerate(groups):
        packed = [response[: len(response) - left_out] for response in group.responses]
        starts = _fill_line(group.prompt, packed, input_ids[line], position_ids[line], segment_ids[line])
        for start, response in zip(starts, group.responses, strict=True):
            size = len(response)
            sources[row, 0] = line * time + len(group.prompt) - 1
            sources[row, 1:size] = line * time + start + np.arange(size - 1)
            targets[row, :size] = response
            mask[row, :size] = True
            spans.append(Span(line * time + start, size - left_out))
            prompt_of.append(line)
            row += 1
    prompts = [Span(line * time, len(group.prompt)) for line, group in enumerate(groups)]
    last = np.array([span.start + span.size - 1 for span in spans])
    arrays = (input_ids, position_ids, segment_ids, sources, targets, mask, last)
    tensors = [torch.from_numpy(array).to(device) for array in arrays]
    return PackedBatch(
        input_ids=tensors[0],
        position_ids=tensors[1],
        segment_ids=tensors[2],
        segments=segment(prompts, spans, prompt_of, input_ids.size, device=device),
        rows=[index for group in groups for index in group.rows],
        sources=tensors[3],
        targets=tensors[4],
        mask=tensors[5],
        last=tensors[6],
    )


def _fill_line(
    prompt: TokenIds,
    responses: list[TokenIds],
    input_ids: Int[np.ndarray, " time"],
    position_ids: Int[np.ndarray, " time"],
    segments: Int[np.ndarray, " time"],
) -> list[int]:
    """Writes one packed row; returns where each response starts in it."""
    prompt_length = len(prompt)
    input_ids[:prompt_length] = prompt
    position_ids[:prompt_length] = np.arange(prompt_length)
    segments[:prompt_length] = PROMPT
    starts, start = [], prompt_length
    for number, response in enumerate(responses):
        end = start + len(response)
        input_ids[start:end] = response
        position_ids[start:end] = prompt_length + np.arange(len(response))
        segments[start:end] = number
        starts.append(start)
        start = end
    return starts
