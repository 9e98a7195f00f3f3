"""An engine that writes numbered lists by rule: what a model too small to follow instructions can't do in a test."""

import random
from collections.abc import Sequence
from typing import ClassVar

from rule_engine import RuleEngine

from tasks._engines.protocol import Completion, Progress, SamplingParams

VERBS = ("Describe", "Compare", "Draw", "Count", "Praise", "Explain")
THINGS = ("clock", "boat", "a red kite", "the tides", "two drums", "winter light", "an old loom", "the harvest")
MANNERS = ("in four words", "for a child of six", "as a song", "without adjectives", "works", "from memory")


class ListingEngine(RuleEngine):
    """Two instructions for each request, drawn by the seed: `name: listing_engine:ListingEngine`."""

    name = "listing"
    seeds: ClassVar[list[int]] = []

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        samples: Sequence[int],
        sampling: SamplingParams,
        seed: int,
        on_progress: Progress,
    ) -> list[list[Completion]]:
        self.seeds.append(seed)
        assert all("Write 4 new tasks" in self.read(prompt) for prompt in prompts)
        draw = random.Random(seed)
        return [[self._answer(draw)] * n for n in samples]

    def _answer(self, draw: random.Random) -> Completion:
        lines = [f"{draw.choice(VERBS)} {draw.choice(THINGS)} {draw.choice(MANNERS)}." for _ in range(2)]
        text = "\n".join(f"{number}. {line}" for number, line in enumerate(lines, start=1))
        return Completion((1, 2), (0.0, 0.0), text, "stop")
