"""How the policy is sampled."""

from typing import Any

from pydantic import Field

from storage.config_base import StrictConfig
from tasks._engines.config import EngineConfig


class SamplingConfig(StrictConfig):
    """The distribution that tokens are drawn from."""

    max_tokens: int = Field(256, ge=1, description="longest answer, in tokens")
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(-1, ge=-1, description="-1: all tokens")


class RolloutsConfig(StrictConfig):
    """What the stage `rollouts` reads."""

    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = EngineConfig()
    rows_per_shard: int = Field(256, ge=1, description="rollouts per shard: the unit of retry")

    def model_post_init(self, _context: Any) -> None:
        """A chat and its answer have to fit the engine's window."""
        if self.sampling.max_tokens >= self.engine.max_model_len:
            raise ValueError(
                f"rollouts.sampling.max_tokens is {self.sampling.max_tokens}, "
                f"expected less than engine.max_model_len ({self.engine.max_model_len})"
            )
