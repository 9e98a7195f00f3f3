"""Frozen states: what a base's middle layers make of an answer, pooled to one vector. Nothing is trained here."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig

from storage.errors import InputError
from tasks._training.batching import TokenIds, group_rows, plan_microbatches
from tasks._training.heads import ended
from tasks._training.layers import transformer_layers
from tasks._training.logprobs import hidden_states
from tasks._training.lora import load_headless_model
from tasks._training.memory import freed_memory_kept
from tasks._training.packing import PackedBatch, pack

Progress = Callable[[int, int, str], None]
FIRST_DEPTH, LAST_DEPTH, LAYERS_PER_DEPTH = 0.3, 0.8, 10


@dataclass(frozen=True)
class StatesSpec:
    """Which states of an answer count: of which layers (1: the first layer's output), pooled how, of which tokens.

    A dialogue is its prompt and the answer with its end token, cut to its last `max_tokens`; the question's tokens
    follow. Poolings are `last` (the answer's last token), `answer` (the mean over the answer), `mean-48` (the mean
    of the dialogue's last 48 tokens) and `question` (the question's last token). Features come layer by layer, in
    each pooling by pooling. Layers are as they leave the layer: the base's last normalisation isn't applied.
    """

    layers: tuple[int, ...]
    poolings: tuple[str, ...]
    max_tokens: int
    question_token_ids: tuple[int, ...]
    end_token_id: int
    dtype: str

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "StatesSpec":
        """What `dataclasses.asdict` made of one, back from JSON."""
        lists = {name: tuple(value) for name, value in document.items() if isinstance(value, list)}
        return cls(**{**document, **lists})


def spread_layers(base: Path) -> tuple[int, ...]:
    """About six layers between 0.3 and 0.8 of a model's depth (9, 12, .. 24 of 30).

    There the states of a small model tell most of an answer's quality: the last layers turn to the next token.
    """
    depth = int(AutoConfig.from_pretrained(base).num_hidden_layers)
    first, last = max(1, round(FIRST_DEPTH * depth)), max(1, round(LAST_DEPTH * depth))
    return tuple(range(first, last + 1, max(1, round(depth / LAYERS_PER_DEPTH))))


class StateReader:
    """The lower layers of a base, and what is read from them."""

    def __init__(self, base: Path, spec: StatesSpec, device: torch.device) -> None:
        if "question" in spec.poolings and not spec.question_token_ids:
            raise InputError("states.poolings: question reads the last token of states.question, and there is none")
        self.spec = spec
        self.device = device
        self.model = load_headless_model(base, spec.dtype, device, layers=max(spec.layers))
        self.features = len(spec.layers) * len(spec.poolings) * int(self.model.config.hidden_size)

    def batches(
        self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds], *, tokens_per_microbatch: int
    ) -> Iterator[tuple[list[int], Float[np.ndarray, "rows features"]]]:
        """Rows by their number and their states, a micro-batch at a time, the longest first.

        Dialogues that are the same up to the answer share it.
        """
        kept = [_cut(prompt, response, self.spec) for prompt, response in zip(prompts, responses, strict=True)]
        heads, tails = [row[0] for row in kept], [row[1] for row in kept]
        groups = group_rows(heads, tails, max_tokens=tokens_per_microbatch)
        with torch.inference_mode(), freed_memory_kept():
            for microbatch in plan_microbatches(groups, tokens_per_microbatch):
                batch = pack(microbatch, pad_token_id=0, device=self.device)
                states = _read(self.model, batch, self.spec.layers)
                yield batch.rows, self._pooled(states, batch, [len(heads[row]) for row in batch.rows])

    def _pooled(
        self, states: list[Float[Tensor, "tokens hidden"]], batch: PackedBatch, prompt_sizes: list[int]
    ) -> Float[np.ndarray, "rows features"]:
        lengths = batch.mask.sum(dim=1).tolist()
        rows = []
        for row, (prompt_size, size) in enumerate(zip(prompt_sizes, lengths, strict=True)):
            places = _places(batch, row, prompt_size, size)
            windows = [_window(pooling, prompt_size, size, self.spec) for pooling in self.spec.poolings]
            rows.append(
                torch.cat([layer[places[window]].float().mean(dim=0) for layer in states for window in windows])
            )
        return torch.stack(rows).cpu().numpy()


def read_states(
    reader: StateReader,
    prompts: Sequence[TokenIds],
    responses: Sequence[TokenIds],
    *,
    tokens_per_microbatch: int,
    progress: Progress | None = None,
) -> Float[np.ndarray, "rows features"]:
    """The states of all rows in their order, float32."""
    states, done = np.zeros((len(prompts), reader.features), dtype=np.float32), 0
    for rows, made in reader.batches(prompts, responses, tokens_per_microbatch=tokens_per_microbatch):
        states[rows] = made
        done += len(rows)
        if progress is not None:
            progress(done, len(prompts), "answers")
    return states


def _cut(prompt: TokenIds, response: TokenIds, spec: StatesSpec) -> tuple[TokenIds, TokenIds]:
    """The dialogue's last tokens in two parts that are never empty; the question follows the second."""
    answer = ended(response, spec.end_token_id)
    kept = np.concatenate([prompt, answer])[-spec.max_tokens :]
    start = max(1, len(kept) - len(answer))
    return kept[:start], np.concatenate([kept[start:], np.array(spec.question_token_ids, dtype=np.int32)])


def _places(batch: PackedBatch, row: int, prompt_size: int, size: int) -> Int[Tensor, " tokens"]:
    """Where a row's tokens lie on the flattened axis: the prompt's, then those of answer and question."""
    end = int(batch.sources[row, 0]) + 1
    prompt = torch.arange(end - prompt_size, end, device=batch.sources.device)
    return torch.cat([prompt, batch.sources[row, 1:size], batch.last[row : row + 1]])


def _window(pooling: str, prompt_size: int, size: int, spec: StatesSpec) -> slice:
    """The tokens of a row that a pooling averages."""
    everything = prompt_size + size
    end = everything - len(spec.question_token_ids)
    if pooling == "question":
        return slice(everything - 1, everything)
    if pooling == "answer":
        return slice(prompt_size, end)
    if pooling == "last":
        return slice(end - 1, end)
    return slice(max(0, end - int(pooling.removeprefix("mean-"))), end)


def _read(model: nn.Module, batch: PackedBatch, layers: Sequence[int]) -> list[Float[Tensor, "tokens hidden"]]:
    """The outputs of some layers, in the order asked for, their batch and time axes flattened."""
    with _kept(model, layers) as outputs:
        hidden_states(model, batch)
    return [outputs[layer].flatten(0, 1) for layer in layers]


@contextmanager
def _kept(model: nn.Module, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    outputs: dict[int, Tensor] = {}

    def keep(number: int, _module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs[number] = output[0] if isinstance(output, tuple) else output

    blocks = transformer_layers(model)
    hooks = [blocks[number - 1].register_forward_hook(partial(keep, number)) for number in set(layers)]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
