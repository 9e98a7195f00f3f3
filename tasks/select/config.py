"""How many prompts an iteration draws, which, how often each is sampled, and the fixed held-out batch."""

import math
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from storage.config_base import StrictConfig, added
from tasks.select.history_config import DRAWS_TO_RETIRE, HistoryConfig
from tasks.select.strategy_config import (
    BandConfig,
    EvenConfig,
    GresoConfig,
    InformativeConfig,
    ThompsonConfig,
    UniformConfig,
    VarianceConfig,
)

StrategyConfig = UniformConfig | ThompsonConfig | VarianceConfig | BandConfig | GresoConfig
AllocationConfig = EvenConfig | InformativeConfig


class SelectConfig(StrictConfig):
    """The batch of one iteration. A strategy or an allocation without parameters may be written as its name."""

    prompts_per_iteration: int = Field(32, ge=1, description="training prompts drawn; at most the pool's")
    samples_per_prompt: int = Field(8, ge=1, description="rollouts per prompt: a group; the mean of an allocation")
    strategy: StrategyConfig = added(
        UniformConfig(), "which prompts: uniform, thompson, variance, band or greso", discriminator="name"
    )
    retire_from: float | None = added(
        None, "prompts from this expected pass rate on come for rehearsal alone; 0.9 is usual", gt=0, le=1
    )
    rehearsal_share: float = added(
        0.05, "share of the prompts drawn that are retired ones, the longest ago", ge=0, le=1
    )
    exploration_share: float = added(
        0.0,
        "share of the prompts drawn, whatever the strategy: half the least drawn, half those that failed",
        ge=0,
        le=1,
    )
    allocation: AllocationConfig = added(
        EvenConfig(), "rollouts of each prompt under the same total: even, informative", discriminator="name"
    )
    history: HistoryConfig = added(HistoryConfig(), "what is remembered of each prompt's outcomes")

    @field_validator("strategy", "allocation", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.retire_from is not None and self.rehearsal_share + self.exploration_share > 1:
            raise ValueError(
                f"rehearsal_share {self.rehearsal_share} and exploration_share {self.exploration_share} are more than "
                "the whole; lower one of them"
            )
        return self

    @model_validator(mode="after")
    def _solved_prompts_retire(self) -> Self:
        split = self.allocation
        if isinstance(split, InformativeConfig):
            self.check_retirement(split.max_samples, "allocation.max_samples")
        else:
            self.check_retirement(self.samples_per_prompt, "samples_per_prompt")
        return self

    def check_retirement(self, samples: int, where: str) -> None:
        """Raises `ValueError` when a prompt that always passes never retires: `where` sets its `samples` per draw."""
        reachable = self.history.mean_of_solved(samples)
        if self.retire_from is None or self.retire_from <= reachable:
            return
        shown = math.floor(reachable * 1e4) / 1e4
        raise ValueError(
            f"retire_from is {self.retire_from}, and a prompt that passes all of its {samples} rollouts ({where}) "
            f"{DRAWS_TO_RETIRE} draws in a row comes to {shown} under history.discount {self.history.discount} and "
            f"history.prior {list(self.history.prior)}: none would retire; lower retire_from to {shown} or less, or "
            f"raise {where} or history.discount"
        )

    @model_validator(mode="after")
    def _budget_fits(self) -> Self:
        split = self.allocation
        if isinstance(split, InformativeConfig) and not (
            split.min_samples <= self.samples_per_prompt <= split.max_samples
        ):
            raise ValueError(
                f"samples_per_prompt is {self.samples_per_prompt}, the mean of an allocation between min_samples "
                f"{split.min_samples} and max_samples {split.max_samples}; expected it between the two"
            )
        return self


class EvalSelectConfig(StrictConfig):
    """The held-out batch, the same in every iteration."""

    eval_prompts: int | None = Field(None, ge=1, description="held-out prompts; default: all of the eval split")
    samples_per_prompt: int = Field(4, ge=1, description="rollouts per held-out prompt")
