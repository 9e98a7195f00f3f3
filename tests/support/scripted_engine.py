"""An engine that answers judges' questions by rule: what a model too small to judge can't do in a test."""

import json
import re
from collections.abc import Sequence

from rule_engine import RuleEngine

from tasks._engines.protocol import Completion, Progress, SamplingParams

CODE = re.compile(r"\[\[([0-9a-f]{16}) begin answer\]\]\n(.*?)\n\[\[\1 end", re.DOTALL)


class ScriptedEngine(RuleEngine):
    """Scores every answer by its length: 1 to 10, `name: scripted_engine:ScriptedEngine`."""

    name = "scripted"

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        samples: Sequence[int],
        sampling: SamplingParams,
        seed: int,
        on_progress: Progress,
    ) -> list[list[Completion]]:
        assert sampling.temperature == 0
        return [[self._answer(prompt)] * n for prompt, n in zip(prompts, samples, strict=True)]

    def _answer(self, prompt: Sequence[int]) -> Completion:
        code, text = CODE.search(self.read(prompt)).groups()
        said = json.dumps({"id": code, "why": "", "score": 1 + len(text) % 10})
        return Completion((1, 2), (0.0, 0.0), said, "stop")
