"""An engine that writes numbered lists by rule: what a model too small to follow instructions can't do in a test."""

import random
from collections.abc import Sequence
from typing import ClassVar

from tasks._engines.chat import load_tokenizer
from tasks._engines.config import EngineConfig
from tasks._engines.protocol import Completion, Progress, SamplingParams, ServedModel

VERBS = ("Describe", "Compare", "Draw", "Count", "Praise", "Explain")
THINGS = ("clock", "boat", "a red kite", "the tides", "two drums", "winter light", "an old loom", "the harvest")
MANNERS = ("in four words", "for a child of six", "as a song", "without adjectives", "works", "from memory")


class ListingEngine:
    """Two instructions for each request, drawn by the seed: `name: listing_engine:ListingEngine`."""

    name = "listing"
    version = "1"
    alive = True
    seeds: ClassVar[list[int]] = []

    def __init__(self, config: EngineConfig, served: ServedModel, slot: int = 0, slots: int = 1) -> None:
        self.load(served)

    def load(self, served: ServedModel) -> None:
        self._tokenizer = load_tokenizer(served.tokenizer)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        samples: Sequence[int],
        sampling: SamplingParams,
        seed: int,
        on_progress: Progress,
    ) -> list[list[Completion]]:
        self.seeds.append(seed)
        assert all("Write 4 new tasks" in self._tokenizer.decode(list(prompt)) for prompt in prompts)
        draw = random.Random(seed)
        return [[self._answer(draw)] * n for n in samples]

    def _answer(self, draw: random.Random) -> Completion:
        lines = [f"{draw.choice(VERBS)} {draw.choice(THINGS)} {draw.choice(MANNERS)}." for _ in range(2)]
        text = "\n".join(f"{number}. {line}" for number, line in enumerate(lines, start=1))
        return Completion((1, 2), (0.0, 0.0), text, "stop")

    def close(self) -> None:
        pass
