"""Attention over packed rows equals its definition, written token by token in float64."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks._training.attention import SHORT, packed_attention
from tasks._training.batching import PromptGroup
from tasks._training.packing import pack

CPU = torch.device("cpu")
HEADS, KEY_HEADS, SIZE = 4, 2, 8

SHAPES = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(1, 9), min_size=1, max_size=4)), min_size=1, max_size=3
)


def groups_of(shapes):
    """A prompt group per (prompt length, response lengths)."""
    rows = iter(range(1000))
    return [
        PromptGroup(np.arange(prompt), [np.arange(length) for length in lengths], [next(rows) for _ in lengths])
        for prompt, lengths in shapes
    ]


def attended(groups, query, key, value):
    """softmax(q k / sqrt(d)) v per token over its prompt and what is before it in its own segment, token by token."""
    output = torch.zeros(len(groups), query.shape[2], HEADS, SIZE, dtype=torch.float64)
    for line, group in enumerate(groups):
        prompt, start = list(range(len(group.prompt))), len(group.prompt)
        segments = [([], prompt)]
        for response in group.responses:
            segments.append((prompt, list(range(start, start + len(response)))))
            start += len(response)
        for before, own in segments:
            for number, position in enumerate(own):
                seen = before + own[: number + 1]
                for head in range(HEADS):
                    shared = head * KEY_HEADS // HEADS
                    scores = key[line, shared, seen] @ query[line, head, position] / SIZE**0.5
                    output[line, position, head] = torch.softmax(scores, dim=0) @ value[line, shared, seen]
    return output


def compared(shapes):
    """Outputs and gradients of q, k, v: packed attention's in float64, and the definition's."""
    groups = groups_of(shapes)
    batch = pack(groups, pad_token_id=0, device=CPU)
    time = batch.input_ids.shape[1]
    random = torch.Generator().manual_seed(len(shapes))
    inputs = [
        torch.randn(len(groups), heads, time, SIZE, generator=random, dtype=torch.float64, requires_grad=True)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]
    used = torch.zeros(len(groups), time, 1, 1, dtype=torch.float64)
    for line, group in enumerate(groups):
        used[line, : group.length] = 1
    factors = torch.randn(len(groups), time, HEADS, SIZE, generator=random, dtype=torch.float64)
    found = []
    for output in (
        packed_attention(torch.nn.Identity(), *inputs, None, segments=batch.segments, scaling=SIZE**-0.5)[0],
        attended(groups, *inputs),
    ):
        gradients = torch.autograd.grad((output * used * factors).sum(), inputs)
        found.append([(output * used).detach(), *gradients])
    return found


@settings(max_examples=25, deadline=None)
@given(SHAPES)
def test_packed_attention_is_attention_to_the_prompt_and_to_what_comes_before(shapes):
    for found, expected in zip(*compared(shapes), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def test_responses_of_very_different_length_attend_the_same():
    shapes = [(3, [SHORT + 10, 2, 40, 5]), (7, [20, SHORT + 1])]
    assert len(pack(groups_of(shapes), pad_token_id=0, device=CPU).segments.blocks) > 1
    for found, expected in zip(*compared(shapes), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
