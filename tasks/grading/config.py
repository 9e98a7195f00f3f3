"""Which graders score the rollouts, how much each weighs, and from which iteration."""

from typing import Any, Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig, unhashed
from storage.errors import InputError

PROMPT_VERIFIER = "verifier"
REWARD_MODEL = "reward_model"


class GraderConfig(StrictConfig):
    """One grader."""

    grader: str = Field(
        default=PROMPT_VERIFIER,
        min_length=1,
        description="'verifier' (each prompt's own), 'reward_model', a verifier for every prompt by its name, "
        "or package.module:function",
    )
    name: str | None = Field(
        default=None, min_length=1, description="how grades and metrics call it; default: the grader"
    )
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="share of the reward, before normalising")
    params: dict[str, Any] = Field(default_factory=dict, description="passed to the verifier, over the prompt's own")
    from_iteration: int = Field(
        default=0, ge=0, description="the first iteration that it grades; 0: the held-out prompts too"
    )
    judge: bool = Field(
        default=False, description="its verdict is a constraint beside the reward (CGPO); with weight 0 nothing else"
    )
    pass_score: float | None = Field(
        default=None, description="a judge passes from this score on; none: as its verifier says"
    )
    truncated_factor: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="the score is multiplied by it when the length limit cut the rollout",
    )
    score_range: tuple[float, float] | None = Field(
        default=(0.0, 1.0), description="a score outside fails its row; null: every finite score is taken"
    )
    cached: bool | None = unhashed(
        None, "keep its answers, so that none is paid for twice; none: where the grader says that it costs something"
    )
    chunk: int = unhashed(64, "answers that are kept together: what a killed shard pays for again, at most", ge=1)

    @model_validator(mode="after")
    def _judge_draws_a_line(self) -> Self:
        if self.judge and self.pass_score is None and self.grader == REWARD_MODEL:
            raise ValueError("a reward model draws no line between pass and fail; give the judge a pass_score")
        return self

    @property
    def label(self) -> str:
        """The name in grades, rewards and metrics."""
        return self.name or self.grader


class GradingConfig(StrictConfig):
    """The graders and their weights."""

    graders: list[GraderConfig] = Field(default_factory=lambda: [GraderConfig()], min_length=1)
    rows_per_shard: int = unhashed(20_000, "rollouts that one grader scores in one shard, at most", ge=1)
    max_failed_fraction: float = unhashed(
        0.1, "the stage fails when a grader fails on a larger share of the rollouts", ge=0, le=1
    )

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        labels = [grader.label for grader in self.graders]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"two graders are called {label!r}; give one of them another name")
        if sum(grader.weight for grader in self.graders) == 0:
            raise ValueError("every grader has weight 0; give one of them a positive weight")
        return self

    @property
    def needs_reward_model(self) -> bool:
        """Whether one of the graders is the reward model."""
        return any(grader.grader == REWARD_MODEL for grader in self.graders)

    def active(self, iteration: int, has_reward_model: bool) -> "GradingConfig":
        """The graders of one iteration, as the stage takes them: `from_iteration` is spent.

        Iteration 0 stands for the held-out prompts.

        A reward-model grader waits until there is a reward model. Raises `InputError` when none is left.
        """
        graders = [
            grader.model_copy(update={"from_iteration": 0})
            for grader in self.graders
            if grader.from_iteration <= iteration and (has_reward_model or grader.grader != REWARD_MODEL)
        ]
        if sum(grader.weight for grader in graders) == 0:
            raise InputError(
                f"grading: no grader with a weight is active in iteration {iteration}; "
                "set from_iteration of one to it or lower, or add {grader: verifier}"
            )
        return self.model_copy(update={"graders": graders})
