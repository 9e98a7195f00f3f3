"""How the policy is judged, and when it is promoted."""

from pydantic import Field

from storage.config_base import StrictConfig


class EvaluationConfig(StrictConfig):
    """What the stage `evaluation` reads."""

    confidence: float = Field(0.95, gt=0.5, lt=1, description="level of the bootstrap intervals")
    max_regression: float = Field(
        0.05,
        ge=0,
        description="a policy is promoted when the interval of (its score - the champion's) lies above minus this, and "
        "not wholly below zero",
    )
    k: int = Field(4, ge=1, description="k of pass@k and worst@k; lowered to the samples there are")
