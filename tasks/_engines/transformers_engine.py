"""Sampling with transformers in this process: the engine where vLLM can't be installed. Several times slower."""

import importlib.metadata
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from storage.errors import TransientError
from tasks._devices import choose_device, choose_dtype
from tasks._engines.chat import decode, load_tokenizer, stop_token_ids
from tasks._engines.config import EngineConfig
from tasks._engines.protocol import Completion, FinishReason, Progress, SamplingParams, ServedModel

LOG = logging.getLogger(__name__)
ROWS_AT_A_TIME = 64


class TransformersEngine:
    """One model in this process. `slot` and `slots` are no use to it: it takes every core, or the first GPU."""

    name = "transformers"

    def __init__(self, config: EngineConfig, served: ServedModel, slot: int = 0, slots: int = 1) -> None:  # noqa: ARG002
        self.version = importlib.metadata.version("transformers")
        self._config = config
        self._lock = threading.RLock()
        self._closed = False
        self._served: ServedModel | None = None
        self._device = choose_device("auto")
        self._dtype = getattr(torch, choose_dtype(config.dtype, self._device.type))
        self._serve(served)

    @property
    def alive(self) -> bool:
        """Whether it can still serve: until it is closed."""
        return not self._closed

    def _serve(self, served: ServedModel) -> None:
        self._served = None  # unknown until all of it is loaded
        self._model = self._read(served)
        self._tokenizer = load_tokenizer(served.tokenizer)
        self._stops = stop_token_ids(served.tokenizer, self._tokenizer)
        self._served = served

    def _read(self, served: ServedModel) -> PreTrainedModel:
        model = AutoModelForCausalLM.from_pretrained(served.model, dtype=self._dtype, local_files_only=True)
        if served.adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, served.adapter).merge_and_unload()
        torch.nn.Module.to(model, self._device)
        return model.eval()

    def load(self, served: ServedModel) -> None:
        """See `Engine.load`."""
        with self._lock:
            if served != self._served:
                self._serve(served)

    def close(self) -> None:
        """Drop the weights; a thread that is generating stops at its next token with a TransientError."""
        self._closed = True
        if self._lock.acquire(blocking=False):
            self.__dict__.pop("_model", None)
            self._lock.release()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        samples: Sequence[int],
        sampling: SamplingParams,
        seed: int,
        on_progress: Progress,
    ) -> list[list[Completion]]:
        """See `Engine.generate`. Prompts of like length are computed together, 64 samples at a time."""
        with self._lock:
            generator = torch.Generator(self._device).manual_seed(seed)
            rows = [(i, j) for i, n in enumerate(samples) for j in range(n)]
            rows.sort(key=lambda row: len(prompts[row[0]]))
            drawn: dict[tuple[int, int], Completion] = {}
            for begin in range(0, len(rows), ROWS_AT_A_TIME):
                batch = rows[begin : begin + ROWS_AT_A_TIME]
                found = self._sample([prompts[i] for i, _ in batch], sampling, generator)
                texts = decode(self._tokenizer, [one.ids for one in found])
                for row, one, text in zip(batch, found, texts, strict=True):
                    drawn[row] = Completion(tuple(one.ids), tuple(one.logprobs), text, one.finish_reason)
                on_progress(len(drawn), len(rows))
        return [[drawn[i, j] for j in range(n)] for i, n in enumerate(samples)]

    @torch.inference_mode()
    def _sample(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingParams, generator: torch.Generator
    ) -> "list[_Drawn]":
        """One completion a prompt. Prompts are left-padded to one length; a row that ended leaves the batch."""
        drawn = [_Drawn(room=min(sampling.max_tokens, self._config.max_model_len - len(prompt))) for prompt in prompts]
        live = [row for row, one in enumerate(drawn) if one.room > 0]
        tokens, mask = _left_padded([prompts[row] for row in live], self._device)
        cache = DynamicCache(config=self._model.config)
        while live:
            if self._closed:
                raise TransientError("the transformers engine was closed while it generated")
            logprobs = processed_logprobs(self._logits(tokens, mask, cache), sampling)
            chosen = _draw(logprobs, sampling, generator)
            chosen_logprobs = logprobs.gather(1, chosen[:, None])[:, 0]
            for row, token, logprob in zip(live, chosen.tolist(), chosen_logprobs.tolist(), strict=True):
                drawn[row].append(token, logprob, self._stops)
            going = [place for place, row in enumerate(live) if not drawn[row].ended]
            if len(going) < len(live):
                kept = torch.tensor(going, device=self._device, dtype=torch.long)
                cache.batch_select_indices(kept)
                mask, chosen, live = mask[kept], chosen[kept], [live[place] for place in going]
            tokens = chosen[:, None]
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
        return drawn

    def _logits(
        self, tokens: Int[Tensor, "rows new"], mask: Int[Tensor, "rows time"], cache: DynamicCache
    ) -> Float[Tensor, "rows vocabulary"]:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        return self._model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        ).logits[:, -1]


@dataclass
class _Drawn:
    """A completion while it grows to at most `room` tokens."""

    room: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False

    def append(self, token: int, logprob: float, stops: list[int]) -> None:
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.stopped = token in stops

    @property
    def ended(self) -> bool:
        return self.stopped or len(self.ids) >= self.room

    @property
    def finish_reason(self) -> FinishReason:
        if self.room <= 0:
            return "abort"
        return "stop" if self.stopped else "length"


def processed_logprobs(
    logits: Float[Tensor, "rows vocabulary"], sampling: SamplingParams
) -> Float[Tensor, "rows vocabulary"]:
    """Natural log-probabilities of the distribution that is sampled from: temperature, then top-k, then top-p.

    The same order and ties as vLLM: top-k keeps all that equal the k-th; top-p keeps the smallest set of the
    likeliest tokens whose mass reaches p (Holtzman et al. 2020, section 3.1).
    """
    logits = logits.float()
    if sampling.temperature > 0:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1)
        outside = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - sampling.top_p
        outside[:, -1] = False
        logits = logits.masked_fill(outside.scatter(1, order, outside), -torch.inf)
    return logits.log_softmax(dim=-1)


def _draw(
    logprobs: Float[Tensor, "rows vocabulary"], sampling: SamplingParams, generator: torch.Generator
) -> Int[Tensor, " rows"]:
    if sampling.temperature == 0:
        return logprobs.argmax(dim=-1)
    return torch.multinomial(logprobs.exp(), 1, generator=generator)[:, 0]


def _left_padded(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "rows time"], Int[Tensor, "rows time"]]:
    width = max((len(prompt) for prompt in prompts), default=0)
    tokens = torch.zeros(len(prompts), width, dtype=torch.long, device=device)
    mask = torch.zeros(len(prompts), width, dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[row, width - len(prompt) :] = 1
    return tokens, mask
