"""Configuration of data quality."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig

Ridge = Annotated[float, Field(gt=0)]
Action = Literal["keep", "flip", "smooth", "drop"]


class PairQualityConfig(StrictConfig):
    """What is done with labels that models which never saw them disagree with."""

    members: int = Field(5, ge=1, description="linear heads of each cross-validation, over stored states")
    repeats: int = Field(2, ge=2, description="cross-validations; members x repeats models in all")
    folds: int = Field(5, ge=2)
    ridges: list[Ridge] = Field(
        [0.1, 0.3, 1.0, 3.0], min_length=1, description="per feature; chosen within the training folds"
    )
    lowest_share: float = Field(0.1, ge=0, le=0.5, description="the weakest pairs; only those with strength below 0")
    lowest: Action = Field("flip", description="what is done with them")
    middle_share: float = Field(0.3, ge=0, le=1, description="the pairs above the weakest")
    middle: Action = Field("smooth", description="what is done with them")
    smoothing: float = Field(0.2, ge=0, le=0.5, description="assumed chance that a smoothed label is wrong")
    margins: bool = Field(False, description="the kept pairs' strength is their margin, in logits")

    @model_validator(mode="after")
    def _leaves_pairs(self) -> Self:
        if self.lowest_share + self.middle_share > 1:
            raise ValueError("lowest_share and middle_share: more than all pairs")
        return self
