"""The benchmark's count of arithmetic, against what torch counts of a real forward and backward pass."""

import numpy as np
import pytest
import torch
from flops import RowGroup, layer_products, update_flops
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from tasks._training.batching import PromptGroup
from tasks._training.logprobs import token_logprobs
from tasks._training.packing import pack

PROMPT, RESPONSES, RANK = 5, [4, 7, 3], 4
CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


def counted(groups: list[PromptGroup]) -> int:
    """Operations in the linear modules and the projection, in one pass forward and back by PEFT and the trainer."""
    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    model.requires_grad_(False)
    policy = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear"))
    # The formula counts the gradient with respect to the embeddings, which a frozen one would skip.
    policy.enable_input_require_grads()
    batch = pack(groups, pad_token_id=0, device=torch.device("cpu"), last_tokens=False)
    with FlopCounterMode(display=False) as counter:
        token_logprobs(policy, batch, torch.ones(len(batch.rows))).logprobs.sum().backward()
    found = counter.get_flop_counts()["Global"]
    return found[torch.ops.aten.mm] + found.get(torch.ops.aten.addmm, 0)


def attention_flops(pairs: int) -> int:
    """Twelve per pair, per layer, per number in the queries."""
    return 12 * CONFIG["num_hidden_layers"] * layer_products(CONFIG)[0][1] * pairs


@pytest.mark.parametrize("share_prompt", [True, False])
def test_the_count_is_what_torch_counts_of_products_plus_attention_by_pairs(share_prompt: bool):
    prompt = np.arange(PROMPT)
    responses = [np.arange(length) for length in RESPONSES]
    if share_prompt:
        groups = [[PromptGroup(prompt, responses, [0, 1, 2])]]
    else:
        groups = [[PromptGroup(prompt, [response], [0])] for response in responses]
    found = sum(counted(group) for group in groups)
    rows = [(PROMPT, RESPONSES)] if share_prompt else [(PROMPT, [length]) for length in RESPONSES]
    attended = 0
    for first, others in rows:
        keys = [position + 1 for position in range(first)]
        keys += [first + position + 1 for length in others for position in range(length - 1)]
        attended += sum(keys)
    expected = found + attention_flops(attended)
    assert update_flops(CONFIG, RANK, [RowGroup(PROMPT, RESPONSES)], share_prompt=share_prompt) == expected


def test_a_shared_prompt_is_counted_once():
    group = RowGroup(40, [10] * 8)
    shared = update_flops(CONFIG, RANK, [group], share_prompt=True)
    single = update_flops(CONFIG, RANK, [group], share_prompt=False)
    alone = update_flops(CONFIG, RANK, [RowGroup(40, [10])], share_prompt=True)
    assert single == 8 * alone
    assert shared < single
