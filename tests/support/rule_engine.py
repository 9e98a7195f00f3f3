"""What engines that answer by rule have in common: a tokenizer of the served model, and nothing to close."""

from collections.abc import Sequence

from tasks._engines.chat import load_tokenizer
from tasks._engines.config import EngineConfig
from tasks._engines.protocol import ServedModel


class RuleEngine:
    """An engine without a model; what it answers is its `generate`."""

    name = "rule"
    version = "1"
    alive = True

    def __init__(self, config: EngineConfig, served: ServedModel, slot: int = 0, slots: int = 1) -> None:
        self.load(served)

    def load(self, served: ServedModel) -> None:
        self._tokenizer = load_tokenizer(served.tokenizer)

    def read(self, prompt: Sequence[int]) -> str:
        """The prompt's text."""
        return self._tokenizer.decode(list(prompt))

    def close(self) -> None:
        pass
