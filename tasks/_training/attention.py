"""Attention over packed rows that computes little but what a token may look at.

A dense mask over a packed row costs time x time scores, most of them masked: with eight responses of 40 tokens to a
prompt of 40 a ninth of them count. Here prompts and responses are rows of their own, padded to one length, and a
response's keys are its prompt's followed by its own.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

PACKED = "packed"
SHORT = 64


@dataclass(frozen=True)
class Block:
    """Responses of similar length: `prompt_of` numbers each one's prompt; true where a token may look at a key."""

    length: int
    prompt_of: Int[Tensor, " responses"]
    mask: Bool[Tensor, "responses 1 length keys"]


@dataclass(frozen=True)
class Segments:
    """How the tokens of a packed batch, its batch and time axes flattened, become rows of their own and back.

    Slots are the padded prompts followed by the padded responses, block by block. `tokens_of` gives each slot's
    token and `slots_of` each token's slot; padding has the number after the last.
    """

    tokens_of: Int[Tensor, " slots"]
    slots_of: Int[Tensor, " tokens"]
    prompt_mask: Bool[Tensor, "prompts 1 prompt_length prompt_length"]
    blocks: list[Block]


@dataclass(frozen=True)
class Span:
    """Where a prompt or a response lies: its first token on the flattened axis, and its tokens."""

    start: int
    size: int


def segment(
    prompts: list[Span], responses: list[Span], prompt_of: list[int], tokens: int, *, device: torch.device
) -> Segments:
    """The rows of a packed batch of `tokens` tokens, padding included."""
    longest = max(prompt.size for prompt in prompts)
    slots = [_slots(prompts, longest, tokens)]
    blocks = []
    for members in _similar(responses):
        chosen = [responses[member] for member in members]
        block = _block(chosen, [prompt_of[member] for member in members], prompts, device)
        if not block.length:  # responses of one token, which is a target only
            continue
        slots.append(_slots(chosen, block.length, tokens))
        blocks.append(block)
    tokens_of = np.concatenate(slots)
    slots_of = np.full(tokens + 1, len(tokens_of), dtype=np.int64)
    slots_of[tokens_of] = np.arange(len(tokens_of))
    causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
    return Segments(
        torch.from_numpy(tokens_of).to(device),
        torch.from_numpy(slots_of[:tokens]).to(device),
        causal.expand(len(prompts), 1, longest, longest),
        blocks,
    )


def rows_apart(device_type: str, dtype: torch.dtype) -> bool:
    """Whether rows of their own are faster than a dense mask: measured on two cores, answers of 40 to 48 tokens.

    In float32 the scores cost more than the gathers (a third less time in attention); in bfloat16, with instructions
    for it, a tenth less than the gathers. On an H100 an update of a model of 1.7 billion weights, 16 answers of 32 to
    512 tokens to a prompt, takes a seventh less time, for a quarter more memory.
    """
    return device_type == "cuda" or dtype == torch.float32


def packed_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "batch heads time size"],
    key: Float[Tensor, "batch key_heads time size"],
    value: Float[Tensor, "batch key_heads time size"],
    attention_mask: Bool[Tensor, "batch 1 time time"] | None,
    *,
    segments: Segments | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "batch time heads size"], None]:
    """An attention function for transformers: a decoder that is called with `segments=` hands it on to here.

    Called without, it is transformers' own over the mask. The choice is the call's, so that a layer which is
    computed again in the backward pass attends as it did before.
    """
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    batch, heads, time, _size = query.shape
    queries, keys, values = (_take(_flat(x), segments.tokens_of, segments.slots_of) for x in (query, key, value))
    key_heads, shape = key.shape[1], segments.prompt_mask.shape
    prompts, length = shape[0], shape[-1]
    end = prompts * length
    prompt_keys, prompt_values = (_rows(x[:end], prompts, key_heads) for x in (keys, values))
    found = [_attend(queries[:end], prompt_keys, prompt_values, segments.prompt_mask, scaling)]
    for block in segments.blocks:
        rows = len(block.prompt_of)
        start, end = end, end + rows * block.length
        own_keys, own_values = (_rows(x[start:end], rows, key_heads) for x in (keys, values))
        all_keys = torch.cat([prompt_keys.index_select(0, block.prompt_of), own_keys], dim=2)
        all_values = torch.cat([prompt_values.index_select(0, block.prompt_of), own_values], dim=2)
        found.append(_attend(queries[start:end], all_keys, all_values, block.mask, scaling))
    output = _take(torch.cat(found), segments.slots_of, segments.tokens_of)
    return output.view(batch, time, heads, -1), None


AttentionInterface.register(PACKED, packed_attention)


def _attend(
    queries: Float[Tensor, "slots width"],
    keys: Float[Tensor, "rows key_heads keys size"],
    values: Float[Tensor, "rows key_heads keys size"],
    mask: Bool[Tensor, "rows 1 length keys"],
    scaling: float | None,
) -> Float[Tensor, "slots width"]:
    """Heads that share their keys become further queries of one head: no key is copied per head."""
    rows, key_heads, _, size = keys.shape
    length, shared = mask.shape[2], queries.shape[1] // (key_heads * size)
    split = queries.view(rows, length, key_heads, shared, size).permute(0, 2, 3, 1, 4)
    output = scaled_dot_product_attention(
        split.reshape(rows, key_heads, shared * length, size),
        keys,
        values,
        attn_mask=mask.repeat(1, 1, shared, 1),
        scale=scaling,
    )
    return output.view(rows, key_heads, shared, length, -1).permute(0, 3, 1, 2, 4).reshape(rows * length, -1)


def _flat(x: Float[Tensor, "batch heads time size"]) -> Float[Tensor, "tokens width"]:
    return x.transpose(1, 2).flatten(2).flatten(0, 1)


def _rows(x: Float[Tensor, "slots width"], rows: int, heads: int) -> Float[Tensor, "rows heads length size"]:
    return x.view(rows, len(x) // rows, heads, -1).transpose(1, 2)


def _take(
    x: Float[Tensor, "from width"], index: Int[Tensor, " to"], inverse: Int[Tensor, " from"]
) -> Float[Tensor, "to width"]:
    """x[index], zero where the index is len(x); no other entry occurs twice, so the gradient is gradient[inverse]."""
    return _Take.apply(x, index, inverse)


class _Take(torch.autograd.Function):
    """torch's own gradient of indexing adds row by row, which takes longer than the attention itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return torch.cat([x, x.new_zeros(1, x.shape[1])]).index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        padded = torch.cat([gradient, gradient.new_zeros(1, gradient.shape[1])])
        return padded.index_select(0, inverse), None, None


def _slots(spans: list[Span], length: int, tokens: int) -> Int[np.ndarray, " slots"]:
    slots = np.full((len(spans), length), tokens, dtype=np.int64)
    for line, span in zip(slots, spans, strict=True):
        line[: span.size] = span.start + np.arange(span.size)
    return slots.ravel()


def _similar(responses: list[Span]) -> list[list[int]]:
    """Responses' numbers, the longest first, cut where one is less than half as long as the longest before it."""
    ordered = sorted(range(len(responses)), key=lambda number: (-responses[number].size, number))
    parts: list[list[int]] = []
    for number in ordered:
        longest = responses[parts[-1][0]].size if parts else 0
        if not parts or (longest > SHORT and 2 * responses[number].size < longest):
            parts.append([])
        parts[-1].append(number)
    return parts


def _block(chosen: list[Span], prompt_of: list[int], prompts: list[Span], device: torch.device) -> Block:
    length, longest = max(span.size for span in chosen), max(prompt.size for prompt in prompts)
    sizes = torch.tensor([prompts[number].size for number in prompt_of])
    of_prompt = (torch.arange(longest) < sizes[:, None])[:, None, None].expand(-1, 1, length, longest)
    own = torch.ones(length, length, dtype=torch.bool).tril().expand(len(chosen), 1, length, length)
    return Block(length, torch.tensor(prompt_of).to(device), torch.cat([of_prompt, own], dim=3).to(device))
