"""A generative judge's question: what comes after an answer, and the two words that its score compares."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from storage.errors import InputError
from tasks._training.logprobs import check_plain_head
from tasks._training.lora import load_causal_model

YES, NO = "Yes", "No"
ANSWER = "\u241fanswer\u241f"  # stands for an answer where the template is looked at


@dataclass(frozen=True)
class Question:
    """Token ids: of the user's turn that follows an ended answer, and of the first token of each word."""

    token_ids: tuple[int, ...]
    yes: int
    no: int


def ask_in(tokenizer: Any, question: str) -> Question:
    """The question in the model's own chat form, up to where the assistant's reply begins.

    Raises `InputError` for a tokenizer without a chat template, or one that doesn't tell the two words apart.
    """
    if not tokenizer.chat_template:
        raise InputError(f"{tokenizer.name_or_path}: no chat template, so nothing can be asked; choose another kind")
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}]
    asked = [*chat, {"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    before, found, after = text.partition(ANSWER)
    if not found or not before:
        raise InputError(f"{tokenizer.name_or_path}: the chat template changes answers, so nothing can be asked of one")
    after = after.removeprefix(tokenizer.eos_token)  # an ended answer has it already
    words = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (YES, NO)]
    if words[0] == words[1]:
        raise InputError(f"{tokenizer.name_or_path}: {YES} and {NO} begin with the same token")
    return Question(tuple(tokenizer(after, add_special_tokens=False)["input_ids"]), *words)


def load_judge(
    base: Path, dtype: str, device: torch.device, question: Question
) -> tuple[PreTrainedModel, Float[Tensor, "1 hidden"]]:
    """The base without its output projection, and the direction in which that says yes and not no.

    logit(yes) - logit(no) is that direction times the last hidden state: a scalar head that the base brings along.
    Raises `InputError` for a model that transforms its logits.
    """
    causal = load_causal_model(base, dtype, device)
    check_plain_head(causal.config)
    projection = causal.get_output_embeddings()
    if projection.bias is not None:
        raise InputError(f"{base}: its output projection has a bias, which a generative judge here doesn't know")
    direction = projection.weight[question.yes].float() - projection.weight[question.no].float()
    return causal.get_decoder(), direction[None].detach().cpu()
