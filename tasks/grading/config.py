"""Which graders score the rollouts, how much each weighs, and from which iteration."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig, unhashed
from storage.errors import InputError
from tasks.grading.composite_check import check_composite
from tasks.grading.composite_config import CompositeConfig
from tasks.grading.judges.config import JUDGES, JudgeConfig, check_judge

PROMPT_VERIFIER = "verifier"
REWARD_MODEL = "reward_model"
COMMAND = "command"


class GraderConfig(StrictConfig):
    """One grader."""

    grader: str = Field(
        default=PROMPT_VERIFIER,
        min_length=1,
        description="'verifier' (each prompt's own), 'reward_model', a verifier for every prompt by its name, "
        "a judging language model ('rubric', 'pairwise', 'reference_judge'), package.module:function or :Class, an "
        "endpoint's http(s) address, or 'command'",
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
    judging: JudgeConfig | None = Field(default=None, description="who judges, for the graders that are a judge")
    truncated_factor: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="the score is multiplied by it when the length limit cut the rollout",
    )
    score_range: tuple[float, float] | None = Field(
        default=(0.0, 1.0), description="a score outside fails its row; null: every finite score is taken"
    )
    latency: Literal["instant", "slow"] = Field(
        default="instant", description="slow: its grades may come later; composite.missing says what a group does then"
    )
    timeout_s: float = unhashed(
        10.0, "seconds that one rollout may take; what is stuck then is ended, and its row fails", gt=0
    )
    concurrency: int = unhashed(
        16, "rollouts (of an endpoint: requests) under way at once, for graders that wait: async, endpoints", ge=1
    )
    batch_size: int = unhashed(
        32, "rollouts per call of a class's grade_batch, per request to an endpoint, per run of a command", ge=1
    )
    retries: int = unhashed(4, "an endpoint that is busy (429), failing (5xx) or away is asked so often again", ge=0)

    @model_validator(mode="after")
    def _judge_draws_a_line(self) -> Self:
        if self.judge and self.pass_score is None and self.grader in (REWARD_MODEL, *JUDGES):
            named = "a reward model" if self.grader == REWARD_MODEL else self.grader
            raise ValueError(f"{named} draws no line between pass and fail; give the judge a pass_score")
        return self

    @model_validator(mode="after")
    def _judged_by_somebody(self) -> Self:
        check_judge(self.grader, self.judging, self.params, self.from_iteration)
        return self

    @property
    def label(self) -> str:
        """The name in grades, rewards and metrics."""
        return self.name or self.grader

    @property
    def local_model(self) -> str | None:
        """The model that it judges by and an engine here serves: 'champion', a folder or package:NAME."""
        return self.judging.local_model if self.judging else None


class GradingConfig(StrictConfig):
    """The graders, their weights, and how their grades become a reward."""

    graders: list[GraderConfig] = Field(default_factory=lambda: [GraderConfig()], min_length=1)
    composite: CompositeConfig = CompositeConfig()
    rows_per_shard: int = unhashed(
        20_000, "rollouts that one grader scores in one shard, about: groups stay whole", ge=1
    )
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
        check_composite(self.composite, self.graders)
        return self

    @property
    def needs_reward_model(self) -> bool:
        """Whether one of the graders is the reward model."""
        return any(grader.grader == REWARD_MODEL for grader in self.graders)

    @property
    def local_models(self) -> dict[str, str]:
        """The models that engines here serve, by the label of the grader that judges by them."""
        return {grader.label: grader.local_model for grader in self.graders if grader.local_model is not None}

    def active(self, iteration: int, has_reward_model: bool) -> "GradingConfig":
        """The graders of one iteration, as the stage takes them: `from_iteration` is spent.

        Iteration 0 stands for the held-out prompts: scored by the weighted mean unless `composite.held_out`.

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
        return self.model_copy(update={"graders": graders, "composite": self._composite_of(graders, iteration)})

    def _composite_of(self, graders: list[GraderConfig], iteration: int) -> CompositeConfig:
        """The composite less the graders that aren't there. Raises `InputError` for one that they can't have."""
        if iteration == 0 and not self.composite.held_out:
            return CompositeConfig()
        labels = {grader.label for grader in graders}
        judges = any(grader.judge for grader in graders)
        composite = self.composite.without(lambda name: name not in labels, judges)
        if not any(grader.latency == "slow" for grader in graders):
            composite = composite.model_copy(update={"missing": "hold"})
        try:
            check_composite(composite, graders)
        except ValueError as error:
            raise InputError(f"grading, in iteration {iteration}: {error}") from None
        return composite
