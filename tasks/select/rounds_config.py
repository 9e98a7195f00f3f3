"""Rounds within an iteration: a few samples before the rest, and other prompts where too few groups survive."""

from pydantic import Field

from storage.config_base import StrictConfig
from tasks.select.config import SelectConfig


class ScreeningConfig(StrictConfig):
    """A few samples of every prompt first, the rest where their rewards vary (SPEED-RL, arXiv 2506.09016)."""

    samples: int = Field(4, ge=2, description="of each prompt at first; the rest of its samples only if they vary")
    min_std: float = Field(
        1e-6, ge=0, description="standard deviation of a prompt's first rewards above which they vary"
    )


class RefillConfig(StrictConfig):
    """Other prompts until enough groups survive the filter (DAPO's dynamic sampling, arXiv 2503.14476)."""

    groups: int = Field(ge=1, description="groups that should survive filtering.rules")
    max_rounds: int = Field(3, ge=2, description="draws of prompts at most, the first one among them")
    prompts: int | None = Field(
        None, ge=1, description="drawn in a further round at most; default: select.prompts_per_iteration"
    )


class RoundsConfig(StrictConfig):
    """What an iteration samples beyond one batch; neither: one batch, each prompt with all of its samples."""

    screening: ScreeningConfig | None = Field(None, description="a few samples first, the rest where they vary")
    refill: RefillConfig | None = Field(None, description="other prompts while too few groups survive")

    @property
    def any(self) -> bool:
        """Whether an iteration may sample more than once."""
        return self.screening is not None or self.refill is not None

    def most_prompts(self, first: int) -> int:
        """Prompts that an iteration draws at most where its first round draws `first`."""
        if self.refill is None:
            return first
        return first + (self.refill.max_rounds - 1) * (self.refill.prompts or first)


class DrawMoreConfig(StrictConfig):
    """The draw of a further round: as the first one, of so many prompts."""

    select: SelectConfig
    prompts: int = Field(ge=1)
