"""Configuration of the stage `report`."""

from pydantic import Field

from storage.config_base import StrictConfig, added


class ReportConfig(StrictConfig):
    """What the page shows."""

    title: str = Field("", description="heading of the page; the campaign's name when empty")
    samples: int = Field(8, ge=0, le=100, description="held-out prompts whose answers stand side by side")
    answers: int = Field(2, ge=1, le=16, description="answers per prompt and policy")
    bins: int = Field(24, ge=5, le=200, description="bins of the histograms of reward and length")
    gold: str = added("", "the grader that stands for people in the over-optimisation watch; none: the held-out score")
