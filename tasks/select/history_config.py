"""What is remembered of each prompt's outcomes."""

from typing import Literal, Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig
from tasks.select.strategy_config import GresoConfig

# A prompt that always passes should be known as solved after that many draws.
DRAWS_TO_RETIRE = 20

Outcome = Literal["auto", "verdict", "score", "reward"]


class HistoryConfig(StrictConfig):
    """How outcomes become a posterior of the pass rate, and how fast they are forgotten."""

    outcome: Outcome = Field(
        "auto",
        description="what a success is: verdict: the grader's pass or fail; score: its score, a part of a success; "
        "reward: the composite; auto: verdict, and for prompts without one reward",
    )
    grader: str | None = Field(
        None, min_length=1, description="whose verdict or score, by its name; default: the first but the reward model"
    )
    reward_range: tuple[float, float] = Field(
        (0.0, 1.0), description="the score or reward that counts as a failure, and the one that counts as a success"
    )
    prior: tuple[float, float] = Field((1.0, 1.0), description="a and b of the Beta prior of every pass rate")
    discount: float = Field(
        0.5,
        ge=0,
        le=1,
        description="what earlier outcomes of a prompt count when new ones come; 1: nothing is forgotten",
    )
    idle_discount: float = Field(
        1.0, gt=0, le=1, description="what they count after each iteration without new ones; 1: nothing is forgotten"
    )

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if min(self.prior) <= 0:
            raise ValueError(f"prior is {self.prior}, expected two numbers above 0")
        if not self.reward_range[0] < self.reward_range[1]:
            raise ValueError(f"reward_range is {self.reward_range}, expected the lower one first")
        return self

    def mean_of_solved(self, samples: int) -> float:
        """The expected pass rate of a prompt whose `samples` rollouts all passed in each of its last 20 draws.

        From the prior, after k draws: a = a0 + n (1 + d + ... + d^(k-1)), and b = b0 stays (MoPPS, arXiv 2507.04632).
        """
        passes = samples * sum(self.discount**age for age in range(DRAWS_TO_RETIRE))
        alpha, beta = self.prior
        return (alpha + passes) / (alpha + passes + beta)


class OutcomesConfig(StrictConfig):
    """What recording the outcomes of one iteration hangs on: the settings, and who made the outcomes."""

    history: HistoryConfig
    grader: str = Field(description="whose verdicts and scores count")
    grader_key: str = Field(description="what makes them: another key, and they don't compare")
    reward_key: str = Field(description="what makes the rewards: graders, weights, steps, reward model")
    skipping: GresoConfig | None = Field(None, description="whose p are adapted")

    @property
    def bases(self) -> tuple[str, ...]:
        """What a prompt's successes are made of: the first of these that its rollouts have."""
        return ("verdict", "reward") if self.history.outcome == "auto" else (self.history.outcome,)

    def key_of(self, basis: str) -> str:
        """Who made outcomes of that kind, less the version of a grader's rule."""
        return f"reward:{self.reward_key}" if basis == "reward" else f"{basis}:{self.grader}:{self.grader_key}"
