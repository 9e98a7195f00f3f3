"""What an engine is: prompts as token ids in, sampled token ids with their log-probabilities out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

FinishReason = Literal["stop", "length", "abort"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SamplingParams:
    """How one completion is drawn: temperature 0 takes the likeliest token; top_k -1 keeps the whole vocabulary."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    `token_ids` holds the end-of-turn token when one was sampled. `logprobs` are natural logs, one a token, of the
    distribution that was sampled from: after temperature, top-k and top-p (temperature 0: at temperature 1).
    `abort` with no tokens: the prompt leaves no room below the engine's `max_model_len`.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason


@dataclass(frozen=True)
class ServedModel:
    """A policy as an engine loads it: a folder of full weights, and a LoRA adapter's folder when it isn't merged.

    Two are equal when their folders are, which are named by their content; a policy's id stays when a forced rerun
    changes its weights, so it is for messages only.
    """

    model: Path
    adapter: Path | None
    policy_id: str = field(compare=False)
    tokenizer: Path


class Engine(Protocol):
    """Serves one policy at a time. The same prompts, sampling and seed give the same samples on the same machine."""

    name: str
    version: str

    @property
    def alive(self) -> bool:
        """Whether it can still serve; a pool replaces one that can't."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        samples: Sequence[int],
        sampling: SamplingParams,
        seed: int,
        on_progress: Progress,
    ) -> list[list[Completion]]:
        """Draw `samples[i]` completions for each of `prompts` (token ids), in the prompts' order.

        `on_progress(done, total)` counts completions. Raises TransientError when the engine dies or is closed.
        """
        ...

    def load(self, served: ServedModel) -> None:
        """Serve another policy from now on. Raises InputError for weights that the engine can't load."""
        ...

    def close(self) -> None:
        """Free the engine's memory and processes, from any thread and without waiting for one that generates."""
        ...
