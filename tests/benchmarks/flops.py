"""Arithmetic that an update can't do without, counted from the model's configuration and the rows' lengths."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class RowGroup(NamedTuple):
    """Tokens of a prompt, and of each response to it that trains."""

    prompt: int
    responses: Sequence[int]


def layer_products(model: dict[str, Any]) -> list[tuple[int, int]]:
    """(inputs, outputs) of a Llama layer's seven linear modules; `model` is its `config.json`."""
    hidden, middle = model["hidden_size"], model["intermediate_size"]
    head = model.get("head_dim") or hidden // model["num_attention_heads"]
    queries, keys = model["num_attention_heads"] * head, model["num_key_value_heads"] * head
    attention = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    return [*attention, (hidden, middle), (hidden, middle), (middle, hidden)]


def update_flops(model: dict[str, Any], rank: int, groups: Sequence[RowGroup], *, share_prompt: bool) -> float:
    """Floating-point operations, an addition and a multiplication being two, of one pass over the rows.

    N = weights in the layers' linear modules, P = those of LoRA beside them, rank (in + out) each, L layers:

    - per token 4 N: forward 2, backward 2 (the base is frozen: no gradient of its weights), and 6 P: forward 2,
      backward 2 and gradient 2;
    - per pair of a token and one that it attends to 12 L (heads x head size): scores and their values 4 forward,
      8 backward;
    - per response token 4 (hidden x vocabulary): the output projection forward and backward, nowhere else.

    A response's last token predicts nothing that trains, so it isn't counted. With `share_prompt` a group's prompt
    is computed once, without it once per response. Left out: norms, activations, softmax and the optimizer (under
    one percent), padding and recomputation, which nobody needs. Counted though not needed: the gradient with
    respect to the embeddings (0.3 percent).
    """
    shapes, layers = layer_products(model), model["num_hidden_layers"]
    weights = layers * sum(inputs * outputs for inputs, outputs in shapes)
    adapter = layers * sum(rank * (inputs + outputs) for inputs, outputs in shapes)
    tokens = sum(_tokens(group, share_prompt) for group in groups)
    pairs = sum(_pairs(group, share_prompt) for group in groups)
    scored = sum(sum(group.responses) for group in groups)
    attention = 12 * layers * shapes[0][1] * pairs
    projection = 4 * model["hidden_size"] * model["vocab_size"] * scored
    return float((4 * weights + 6 * adapter) * tokens + attention + projection)


def _tokens(group: RowGroup, share_prompt: bool) -> int:
    prompts = 1 if share_prompt else len(group.responses)
    return prompts * group.prompt + sum(length - 1 for length in group.responses)


def _pairs(group: RowGroup, share_prompt: bool) -> int:
    prompts = 1 if share_prompt else len(group.responses)
    within = prompts * group.prompt * (group.prompt + 1) // 2
    return within + sum((length - 1) * group.prompt + length * (length - 1) // 2 for length in group.responses)
