"""From a configuration of states to what is read of a base."""

from pathlib import Path
from typing import Any

from tasks._training.states import StatesSpec, spread_layers
from tasks.states.config import StatesConfig


def spec_of(config: StatesConfig, base: Path, tokenizer: Any) -> StatesSpec:
    """The layers by number, the question and the end of an answer in tokens."""
    asked = tokenizer(config.question, add_special_tokens=False)["input_ids"] if config.question else []
    return StatesSpec(
        layers=tuple(config.layers or spread_layers(base)),
        poolings=tuple(config.poolings),
        max_tokens=config.max_tokens,
        question_token_ids=tuple(asked),
        end_token_id=tokenizer.eos_token_id,
        dtype=config.dtype,
    )
