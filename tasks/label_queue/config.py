"""Which pairs of answers people are asked to compare, how many, and how long a run waits for them."""

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from storage.config_base import StrictConfig, added, unhashed

Contradiction = Literal["overrated", "underrated", "residual"]
Strategy = Literal["uncertain", "high_uncertainty", "disagreement", "random"] | Contradiction


class LabellingConfig(StrictConfig):
    """A queue of pairs in every iteration, for `posttrain label CAMPAIGN`."""

    size: int = Field(100, ge=1, description="pairs in an iteration's queue at most")
    labels_per_item: int = Field(
        1, ge=1, description="people who are asked about each pair; 2 or more measure agreement"
    )
    strategies: dict[Strategy, float] = Field(
        {"uncertain": 0.8, "random": 0.2},
        description="share of each strategy in the queue: uncertain (the order of the two is doubtful), "
        "high_uncertainty (both scores are), disagreement (graders rank them differently), random (an audit); "
        "of answers that people labelled in earlier iterations: overrated (a high score, people see it low), "
        "underrated, residual (any other large difference)",
    )
    contradiction_iterations: int = added(
        3, "overrated, underrated and residual look so many iterations back at most", ge=1
    )
    contradiction_quantile: float = added(
        0.8, "a score or a difference is high from this quantile on, low below one minus it", ge=0.5, lt=1
    )
    pairs_per_prompt: int = Field(1, ge=1, description="of one prompt at most")
    grader: str | None = Field(
        None,
        description="label of the grader whose scores and uncertainties order the queue; none: the one that gives "
        "uncertainties, else the reward",
    )
    max_score: int = unhashed(5, "people may score each answer from 1 to this", ge=2, le=10)
    wait_s: float = unhashed(0.0, "a run waits so many seconds for an iteration's labels, then goes on without", ge=0)
    wait_for: float = unhashed(1.0, "share of the labels that ends the waiting", gt=0, le=1)
    poll_s: float = unhashed(10.0, "seconds between two looks at what came", gt=0)

    @property
    def contradictions(self) -> frozenset[str]:
        """The strategies in use that look at answers which people labelled before."""
        return frozenset(name for name, share in self.strategies.items() if share > 0) & set(get_args(Contradiction))

    @model_validator(mode="after")
    def _has_a_strategy(self) -> Self:
        if min(self.strategies.values(), default=0) < 0 or sum(self.strategies.values()) <= 0:
            raise ValueError("strategies: expected shares of at least 0, one of them above, such as {uncertain: 1}")
        if self.contradictions == {name for name, share in self.strategies.items() if share > 0}:
            raise ValueError(
                f"strategies: {', '.join(sorted(self.contradictions))} look at what people labelled, and would never "
                "have anything; add one that begins, such as {random: 0.2}"
            )
        return self


class CollectConfig(StrictConfig):
    """Nothing changes what collecting labels gives."""


COLLECT = CollectConfig()
