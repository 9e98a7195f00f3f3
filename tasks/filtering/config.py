"""Which rollouts train, and how their advantage is taken."""

from typing import Literal

from pydantic import Field

from storage.config_base import StrictConfig


class RuleConfig(StrictConfig):
    """One rule of `tasks.filtering.rules` and its threshold."""

    rule: Literal["no_variance", "truncated", "aborted"]
    threshold: float | None = Field(default=None, ge=0, description="default: the rule's own")


class FilteringConfig(StrictConfig):
    """The rules in order: the first that drops a rollout is named in the ledger.

    A rollout without a complete reward is always dropped, as `incomplete`, before any of them.
    """

    rules: list[RuleConfig] = Field(
        default_factory=lambda: [RuleConfig(rule="aborted"), RuleConfig(rule="no_variance")],
        description="no_variance: groups whose rewards' standard deviation is at most the threshold",
    )
    advantage: Literal["group_mean", "group_mean_std", "leave_one_out"] = Field(
        default="group_mean", description="group_mean: Dr. GRPO; group_mean_std: GRPO; leave_one_out: RLOO"
    )
