"""What a new reward model must hold before it grades."""

from typing import Literal

from pydantic import Field

from storage.config_base import StrictConfig, unhashed


class RewardGateConfig(StrictConfig):
    """The limits of the gate. Candidate and present reward model are checked on the same held-out pairs."""

    enabled: bool = unhashed(True, "false: whatever was trained grades from the next iteration on")
    first: Literal["above_chance", "always"] = Field(
        "above_chance",
        description="the first reward model grades if it is better than chance on enough held-out pairs and within the "
        "other limits, or always; when it stays out, the campaign has none until one passes",
    )
    min_over_chance: float = Field(
        0.0, ge=0, lt=0.5, description="the interval of the first one's accuracy must lie above 0.5 plus this"
    )
    min_pairs: int = Field(20, ge=2, description="held-out pairs without which nobody knows which one is better")
    max_accuracy_loss: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="a candidate passes when the interval of (its accuracy - the present one's) lies above minus this, "
        "and not wholly below zero",
    )
    max_gap: float | None = Field(
        None, gt=0, description="largest mean absolute gap to people's scores, in their scale; none: no such limit"
    )
    max_gap_ratio: float = Field(1.1, ge=1, description="largest gap over the present one's")
    max_length_correlation: float = Field(
        0.3,
        ge=0,
        le=1,
        description="largest correlation of score and length at fixed quality, either way, its interval granted; a "
        "candidate may have as much as the present one",
    )
    min_anchor_agreement: float = Field(0.5, ge=0, le=1, description="smallest share of the anchor pairs it has right")
    max_anchor_loss: float = Field(
        0.02, ge=0, le=1, description="so much less than the present one a candidate may have right of the anchors"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="level of the gate's own intervals")
