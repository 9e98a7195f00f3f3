"""How many prompts an iteration draws, how often each is sampled, and the fixed held-out batch."""

from pydantic import Field

from storage.config_base import StrictConfig


class SelectConfig(StrictConfig):
    """The batch of one iteration."""

    prompts_per_iteration: int = Field(32, ge=1, description="training prompts drawn; at most the pool's")
    samples_per_prompt: int = Field(8, ge=1, description="rollouts per prompt: a group")


class EvalSelectConfig(StrictConfig):
    """The held-out batch, the same in every iteration."""

    eval_prompts: int | None = Field(None, ge=1, description="held-out prompts; default: all of the eval split")
    samples_per_prompt: int = Field(4, ge=1, description="rollouts per held-out prompt")
