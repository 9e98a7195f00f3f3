"""How a model writes more prompts like those that there are."""

from string import Formatter
from typing import Any

from pydantic import Field, field_validator

from storage.config_base import StrictConfig, unhashed
from tasks._engines.config import EngineConfig

INSTRUCTION = (
    "Here are {shown} tasks:\n\n{examples}\n\nWrite {asked} new tasks of the same kind, each about something else. "
    "Give a numbered list with one task on each line, starting with 1., and nothing besides."
)


class ExpandConfig(StrictConfig):
    """Self-instruct (Wang et al. 2023, arXiv 2212.10560, section 2.2): seeds are shown, new instructions are written.

    One is kept when its ROUGE-L with every seed and every one kept before is below `max_similarity`.
    """

    prompts: int = Field(ge=1, description="new prompts wanted; fewer when max_rounds doesn't give as many")
    # The model's artifact is an input of the stage: its weights are hashed, and not where they lie.
    model: str | None = unhashed(None, "folder or package:NAME of the model that writes; default: the run's model")
    seeds: list[int] | None = Field(
        None, description="positions of the sources to learn from, from 0; default: all that are no expansions"
    )
    instruction: str = Field(INSTRUCTION, description="what the model is told, with {examples}, {shown} and {asked}")
    shown: int = Field(8, ge=1, description="examples in a request (the paper's 8)")
    shown_new: int = Field(2, ge=0, description="at most so many of them from the new ones (the paper's 2)")
    asked: int = Field(4, ge=1, description="new instructions that a request asks for")
    requests_per_round: int = Field(16, ge=1, description="requests that see the same kept instructions")
    max_rounds: int = Field(10, ge=1, description="rounds after which expanding ends")
    max_similarity: float = Field(0.7, gt=0, le=1, description="ROUGE-L F from which an instruction is not new")
    min_words: int = Field(4, ge=1, description="a shorter line is no instruction")
    max_words: int = Field(150, ge=1, description="nor is a longer one")
    max_tokens: int = Field(256, ge=8, description="longest answer of the model to one request")
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    engine: EngineConfig = EngineConfig()

    @field_validator("instruction")
    @classmethod
    def _slots(cls, instruction: str) -> str:
        named = {name for _, name, _, _ in Formatter().parse(instruction) if name is not None}
        if "examples" not in named or named - {"examples", "shown", "asked"}:
            raise ValueError("expected {examples} in it, {shown} and {asked} where wanted, and no other braces")
        return instruction

    def model_post_init(self, _context: Any) -> None:
        """A request and its answer have to fit the engine's window."""
        if self.max_tokens >= self.engine.max_model_len:
            raise ValueError(
                f"expand.max_tokens is {self.max_tokens}, expected less than engine.max_model_len "
                f"({self.engine.max_model_len})"
            )
