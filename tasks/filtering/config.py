"""Which rollouts train, and how their advantage is taken."""

from typing import Literal, Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig
from tasks.filtering.rules_config import Aborted, NoVariance, RedundantAcross, RuleConfig

Advantage = Literal[
    "group_mean",
    "group_mean_std",
    "group_mean_batch_std",
    "group_mean_whitened",
    "leave_one_out",
    "batch_whitened",
    "per_component",
    "reward",
    "positive_reward",
    "best_of_n",
]


class OverlongConfig(StrictConfig):
    """DAPO's soft overlong punishment: 0 up to the buffer, then linearly down to -1 at the limit."""

    max_tokens: int = Field(64, ge=1, description="the rollouts' token limit")
    buffer_tokens: int = Field(12, ge=1, description="tokens below the limit in which the punishment grows")

    @model_validator(mode="after")
    def _buffer_fits(self) -> Self:
        if self.buffer_tokens > self.max_tokens:
            raise ValueError(f"buffer_tokens is {self.buffer_tokens}, expected at most max_tokens ({self.max_tokens})")
        return self


class FilteringConfig(StrictConfig):
    """The rules in order: the first that drops a rollout is named in the ledger.

    A rollout without a complete reward is always dropped, as `incomplete`, before any of them.
    """

    rules: list[RuleConfig] = Field(
        [Aborted(rule="aborted"), NoVariance(rule="no_variance")],
        description="each with its options: deployments/filters.md",
    )
    baseline: Literal["all", "kept"] = Field(
        "all", description="what advantages are taken against: all complete rollouts; kept: biased by the filter"
    )
    overlong: OverlongConfig | None = Field(None, description="added to the reward before the advantage is taken")
    advantage: Advantage = Field(
        default="group_mean",
        description="group_mean: Dr. GRPO; group_mean_std: GRPO; leave_one_out: RLOO; group_mean_batch_std: "
        "LitePPO; group_mean_whitened: ScaleRL; batch_whitened: REINFORCE; per_component: GDPO; reward: as it is; "
        "positive_reward: RAFT++; best_of_n: RAFT",
    )
    component_weights: dict[str, float] = Field(
        default_factory=dict,
        description="per_component: weight of a grader, by its name; the graders' own where none is given",
    )

    @model_validator(mode="after")
    def _one_reward(self) -> Self:
        if self.overlong is not None and self.advantage == "per_component":
            raise ValueError("per_component normalises the graders' scores one by one: overlong has no place in it")
        return self

    @property
    def stores_signatures(self) -> bool:
        """Whether later nights may compare their outputs with this one's."""
        return any(isinstance(rule, RedundantAcross) for rule in self.rules)

    @property
    def earlier_nights(self) -> int:
        """How many earlier iterations the rules compare with."""
        return max((rule.nights for rule in self.rules if isinstance(rule, RedundantAcross)), default=0)
