"""Which answers to one prompt are compared with each other. Light."""

from typing import Literal, Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig

WIDEST = 4


class RankingConfig(StrictConfig):
    """From the scores of a prompt's answers to pairs of them."""

    pairs: Literal["widest", "all", "best_worst", "adjacent"] = Field(
        "widest",
        description="widest: the widest margins first; all: every pair of the ranking; best_worst: one pair; adjacent: "
        "each answer with the next one down",
    )
    min_margin: float = Field(
        0.1, gt=0, allow_inf_nan=False, description="difference in score from which one answer is preferred"
    )
    pairs_per_prompt: int | None = Field(
        None, ge=1, description=f"at most, of `all` drawn by seed; none: {WIDEST} of the widest, else every one"
    )
    ties: bool = Field(False, description="answers that score alike are pairs too, marked as ties, at most as many")
    tie_margin: float = Field(0.0, ge=0, allow_inf_nan=False, description="difference up to which two answers tie")

    @model_validator(mode="after")
    def _ties_below_preferences(self) -> Self:
        if self.tie_margin >= self.min_margin:
            raise ValueError(
                f"tie_margin {self.tie_margin} is not below min_margin {self.min_margin}: a pair can't be both"
            )
        return self

    @property
    def limit(self) -> int | None:
        """The most pairs of one prompt; None: no limit."""
        return WIDEST if self.pairs_per_prompt is None and self.pairs == "widest" else self.pairs_per_prompt
