"""Which graded answers become pairs, and how many are held out."""

from pydantic import Field

from storage.config_base import StrictConfig


class PreferencesConfig(StrictConfig):
    """Pairs from graded groups."""

    min_margin: float = Field(0.1, gt=0, description="difference in reward from which one answer is preferred")
    pairs_per_prompt: int = Field(4, ge=1, description="at most; the widest margins first")
    eval_fraction: float = Field(0.2, ge=0, lt=1, description="share of the prompt clusters held out")
