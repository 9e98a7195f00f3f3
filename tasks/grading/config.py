"""Which graders score the rollouts, how much each weighs, and from which iteration."""

import re
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig, added, unhashed
from storage.errors import InputError
from tasks.grading.addresses import check_grader_address
from tasks.grading.composite_check import check_composite
from tasks.grading.composite_config import CompositeConfig
from tasks.grading.judges.config import JUDGES, JudgeConfig, check_judge

PROMPT_VERIFIER = "verifier"
REWARD_MODEL = "reward_model"
OTHER_REWARD_MODEL = "other_reward_model"
COMMAND = "command"
MAJORITY = "majority"
FOLDER = "folder"
HTTP_JOBS = "http_jobs"
ARTIFACT = re.compile(r"[a-z_]+/\w+")


class BudgetConfig(StrictConfig):
    """What a slow grader may be asked in one iteration: none of the limits is exceeded."""

    max_rollouts: int | None = Field(None, ge=1)
    max_cost: float | None = Field(None, gt=0, description="in the grader's currency, at the mean cost so far, else 1")
    max_seconds: float | None = Field(
        None, gt=0, description="at the mean of `seconds` in the answers' detail so far, else 1"
    )
    audit_fraction: float = Field(
        0.05, ge=0, le=1, description="of the budget, for groups drawn at random among those of less value per cost"
    )


class EnsembleConfig(StrictConfig):
    """How the members of a reward model make one score."""

    how: Literal["mean", "wco", "uwo", "soft"] = Field(
        "mean", description="wco: the worst member; uwo: mean less strength times variance; soft: a soft minimum"
    )
    strength: float = Field(0.5, ge=0, description="lambda of uwo (0.5 for best of n, 0.1 for PPO), beta of soft")
    absolute: bool = Field(
        False, description="people's absolute units, where the reward model was calibrated to them; set score_range too"
    )

    @model_validator(mode="after")
    def _soft_has_a_beta(self) -> Self:
        if self.how == "soft" and self.strength == 0:
            raise ValueError("soft with strength 0; beta is above 0")
        return self


class GraderConfig(StrictConfig):
    """One grader."""

    grader: str = Field(
        default=PROMPT_VERIFIER,
        min_length=1,
        description="'verifier' (each prompt's own), 'reward_model', 'other_reward_model' (params: reward_model, the "
        "id of one in this store that the run doesn't train), a verifier for every prompt by its name, "
        "a judging language model ('rubric', 'pairwise', 'reference_judge'), package.module:function or :Class, an "
        "endpoint's http(s) address, or 'command'",
    )
    name: str | None = Field(
        default=None,
        min_length=1,
        description="how grades and metrics call it; default: the grader; an address needs one",
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
    ensemble: EnsembleConfig | None = added(None, "of reward_model: how its members make one score; none: their mean")
    truncated_factor: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="the score is multiplied by it when the length limit cut the rollout",
    )
    score_range: tuple[float, float] | None = Field(
        default=(0.0, 1.0), description="a score outside fails its row; null: every finite score is taken"
    )
    latency: Literal["instant", "slow"] = unhashed(
        "instant",
        "slow: asked now, answered in a later iteration: 'folder', 'http_jobs' or package.module:Class; "
        "composite.missing says what a group without its grades does",
    )
    budget: BudgetConfig | None = unhashed(None, "what a slow grader may be asked in an iteration; none: everything")
    concurrency_limit: str | None = unhashed(
        None, "a concurrency limit of Prefect's that each of its shards takes a slot of", min_length=1
    )
    cached: bool | None = unhashed(
        None, "keep its answers, so that none is paid for twice; none: where the grader says that it costs something"
    )
    chunk: int = unhashed(64, "answers that are kept together: what a killed shard pays for again, at most", ge=1)
    timeout_s: float = unhashed(
        10.0,
        "seconds that one rollout may take, else its row fails; judges and python_code have limits of their own",
        gt=0,
    )
    concurrency: int = unhashed(
        16, "rollouts (of an endpoint: requests) under way at once, for graders that wait: async, endpoints", ge=1
    )
    batch_size: int = unhashed(
        32, "rollouts per call of a class's grade_batch, per request to an endpoint, per run of a command", ge=1
    )
    retries: int = unhashed(4, "an endpoint that is busy (429), failing (5xx) or away is asked so often again", ge=0)

    # First: the others repeat what they found.
    @model_validator(mode="after")
    def _no_secrets(self) -> Self:
        check_grader_address(self.grader, self.name, self.params if self.grader == HTTP_JOBS else {})
        return self

    @model_validator(mode="after")
    def _judge_draws_a_line(self) -> Self:
        if self.judge and self.pass_score is None and (self.is_reward_model or self.grader in JUDGES):
            named = "a reward model" if self.is_reward_model else self.grader
            raise ValueError(f"{named} draws no line between pass and fail; give the judge a pass_score")
        return self

    @model_validator(mode="after")
    def _judged_by_somebody(self) -> Self:
        check_judge(self.grader, self.judging, self.params, self.from_iteration)
        return self

    @model_validator(mode="after")
    def _members_of_a_reward_model(self) -> Self:
        if self.ensemble is not None and not self.is_reward_model:
            raise ValueError(f"{self.grader} has no members; ensemble is for {REWARD_MODEL} and {OTHER_REWARD_MODEL}")
        return self

    @model_validator(mode="after")
    def _names_the_other_reward_model(self) -> Self:
        if self.grader != OTHER_REWARD_MODEL:
            return self
        named = self.params.get("reward_model")
        if not (isinstance(named, str) and ARTIFACT.fullmatch(named)):
            raise ValueError(
                f"{OTHER_REWARD_MODEL}: expected params.reward_model, the id of a reward model's artifact such as "
                f"reward_model/<32 hexadecimal digits>, found {named!r}; `posttrain show CAMPAIGN --json` names them"
            )
        unknown = sorted(set(self.params) - {"reward_model", "device", "tokens_per_microbatch"})
        if unknown:
            raise ValueError(
                f"{OTHER_REWARD_MODEL}: unknown params {unknown}; it has reward_model, device, tokens_per_microbatch"
            )
        if self.ensemble is not None and self.ensemble.absolute:
            raise ValueError(f"{OTHER_REWARD_MODEL}: ensemble.absolute needs a calibration, and it is used without one")
        return self

    @model_validator(mode="after")
    def _slow_or_not(self) -> Self:
        deferred = self.grader in (FOLDER, HTTP_JOBS)
        if deferred and not self.is_slow:
            raise ValueError(f"{self.grader} answers later: set latency: slow")
        if self.is_slow and not deferred and ":" not in self.grader:
            raise ValueError(f"{self.grader} can't be slow: expected {FOLDER}, {HTTP_JOBS} or package.module:Class")
        if self.budget is not None and not self.is_slow:
            raise ValueError("a budget is for graders with latency: slow")
        return self

    @property
    def is_reward_model(self) -> bool:
        """Whether a reward model grades, this run's own or another one."""
        return self.grader in (REWARD_MODEL, OTHER_REWARD_MODEL)

    @property
    def only_watches(self) -> bool:
        """Whether it is a reward model beside the run's own that decides nothing: no reward and no promotion."""
        return self.grader == OTHER_REWARD_MODEL and self.weight == 0 and not self.judge

    @property
    def is_slow(self) -> bool:
        """Whether its grades come in a later iteration."""
        return self.latency == "slow"

    @property
    def label(self) -> str:
        """The name in grades, rewards and metrics."""
        return self.name or self.grader

    @property
    def local_model(self) -> str | None:
        """The model that it judges by and an engine here serves: 'champion', a folder or package:NAME."""
        return self.judging.local_model if self.judging else None


class SlowGrader(StrictConfig):
    """A slow grader, and what decides whom it is asked about."""

    grader: GraderConfig
    budget: BudgetConfig | None = None


class SlowGradingConfig(StrictConfig):
    """What asking the slow graders in one iteration hangs on: asked again in the next one, it gives something else."""

    iteration: int = Field(ge=0)
    graders: list[SlowGrader]
    max_pending_iterations: int = Field(ge=0)
    max_failed_fraction: float = unhashed(0.1, "of grading", ge=0, le=1)


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
    max_pending_iterations: int = unhashed(
        4, "a slow grade that isn't there that many iterations after it was asked for fails", ge=0
    )

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        labels = [grader.label for grader in self.graders]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"two graders are called {label!r}; give one of them another name")
        if sum(grader.weight for grader in self.graders) == 0:
            raise ValueError("every grader has weight 0; give one of them a positive weight")
        if all(grader.is_slow for grader in self.graders):
            raise ValueError(
                "every grader is slow; add an instant one (weight 0 suffices): it grades the held-out prompts and says "
                "whom it is worth asking the slow ones about"
            )
        check_composite(self.composite, self.graders)
        return self

    @property
    def needs_reward_model(self) -> bool:
        """Whether one of the graders is this run's own reward model."""
        return any(grader.grader == REWARD_MODEL for grader in self.graders)

    @property
    def scores_here(self) -> bool:
        """Whether one of the graders is a reward model, which takes the device while it scores."""
        return any(grader.is_reward_model for grader in self.graders)

    @property
    def other_reward_models(self) -> dict[str, str]:
        """The ids of the reward models that the run doesn't train, by the label of the grader that scores by them."""
        others = [grader for grader in self.graders if grader.grader == OTHER_REWARD_MODEL]
        return {grader.label: str(grader.params["reward_model"]) for grader in others}

    @property
    def local_models(self) -> dict[str, str]:
        """The models that engines here serve, by the label of the grader that judges by them."""
        return {grader.label: grader.local_model for grader in self.graders if grader.local_model is not None}

    def active(self, iteration: int, has_reward_model: bool) -> "GradingConfig":
        """The graders of one iteration, as the stage takes them: `from_iteration` is spent.

        Iteration 0 stands for the held-out prompts, which no slow grader grades and none that only watches: scored by
        the weighted mean unless `composite.held_out`, equally weighed where none that grades them has a weight.

        A reward-model grader waits until there is a reward model. Raises `InputError` when none is left.
        """
        graders = [
            grader.model_copy(update={"from_iteration": 0})
            for grader in self.graders
            if grader.from_iteration <= iteration
            and (has_reward_model or grader.grader != REWARD_MODEL)
            and not (iteration == 0 and (grader.is_slow or grader.only_watches))
        ]
        if iteration == 0:
            graders = _with_weight(graders)
        if sum(grader.weight for grader in graders) == 0 or all(grader.is_slow for grader in graders):
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
        composite = composite.weighed({grader.label: grader.weight for grader in graders})
        if not any(grader.is_slow for grader in graders):
            composite = composite.model_copy(update={"missing": "hold"})
        try:
            check_composite(composite, graders)
        except ValueError as error:
            raise InputError(f"grading, in iteration {iteration}: {error}") from None
        return composite

    @property
    def slow(self) -> list[GraderConfig]:
        """The graders whose grades come later."""
        return [grader for grader in self.graders if grader.is_slow]

    def instant(self) -> "GradingConfig":
        """The graders that answer in the iteration that asks; weighed equally where they have no weight."""
        graders = _with_weight([grader for grader in self.graders if not grader.is_slow])
        return self.model_copy(update={"graders": graders, "composite": self._composite_of(graders, 1)})

    def asking(self, iteration: int) -> SlowGradingConfig:
        """What the stage that asks the slow graders takes."""
        return SlowGradingConfig(
            iteration=iteration,
            graders=[SlowGrader(grader=grader, budget=grader.budget) for grader in self.slow],
            max_pending_iterations=self.max_pending_iterations,
            max_failed_fraction=self.max_failed_fraction,
        )


def _with_weight(graders: list[GraderConfig]) -> list[GraderConfig]:
    if sum(grader.weight for grader in graders) > 0:
        return graders
    return [grader if grader.only_watches else grader.model_copy(update={"weight": 1.0}) for grader in graders]
