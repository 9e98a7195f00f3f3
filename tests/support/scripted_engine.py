"""An engine that answers judges' questions by rule: what a model too small to judge can't do in a test."""

import json
import re
from collections.abc import Sequence

from tasks._engines.chat import load_tokenizer
from tasks._engines.config import EngineConfig
from tasks._engines.protocol import Completion, Progress, SamplingParams, ServedModel

CODE = re.compile(r"\[\[([0-9a-f]{16}) begin answer\]\]\n(.*?)\n\[\[\1 end", re.DOTALL)


class ScriptedEngine:
    """Scores every answer by its length: 1 to 10, `name: scripted_engine:ScriptedEngine`."""

    name = "scripted"
    version = "1"
    alive = True

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
        assert sampling.temperature == 0
        return [[self._answer(prompt)] * n for prompt, n in zip(prompts, samples, strict=True)]

    def _answer(self, prompt: Sequence[int]) -> Completion:
        code, text = CODE.search(self._tokenizer.decode(list(prompt))).groups()
        said = json.dumps({"id": code, "why": "", "score": 1 + len(text) % 10})
        return Completion((1, 2), (0.0, 0.0), said, "stop")

    def close(self) -> None:
        pass
