"""When a reward model is trained: once, by the calendar, or on signs that the one in charge has aged."""

from typing import Literal

from pydantic import Field

from storage.config_base import StrictConfig

When = Literal["offline", "every", "trigger"]
TRAIN_EVERY = 3


class TriggerConfig(StrictConfig):
    """Signs of drift. Each compares what is fresh with the check that the reward model in charge was promoted by.

    The first three limits are those of methods.md, section 3.6; a drift that fires asks for a new reward model, and its
    gate still decides.
    """

    uncertainty_ratio: float = Field(
        1.5, gt=1, description="mean uncertainty of this iteration's rollouts, over that of the rollouts of then"
    )
    gap_ratio: float = Field(1.1, ge=1, description="mean absolute gap to people's scores now, over that of the check")
    accuracy_drop: float = Field(0.03, gt=0, lt=1, description="sure fall of the accuracy on fresh held-out pairs")
    min_pairs: int = Field(50, ge=1, description="fewer held-out pairs say nothing of gap and accuracy")
    wait_iterations: int = Field(
        1, ge=1, description="iterations after a training before the signs count again, whatever its gate said"
    )
