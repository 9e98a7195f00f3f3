"""What the members of a reward model say of rows, whatever its kind."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class MemberScores:
    """Raw scores of every member, and the mean and deviation of each member's raw scores of training answers."""

    raw: Float[np.ndarray, "rows members"]
    mean: Float[np.ndarray, " members"]
    std: Float[np.ndarray, " members"]

    @property
    def standardised(self) -> Float[np.ndarray, "rows members"]:
        """Deviations from the mean of the training answers, in their deviations."""
        return (self.raw - self.mean) / self.std
