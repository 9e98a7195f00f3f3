"""Who judges, by what, and at which price. Light: no engine, no client."""

import math
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from storage.config_base import StrictConfig, unhashed
from tasks._engines.config import EngineConfig
from tasks.grading.addresses import check_address

JUDGES = ("rubric", "pairwise", "reference_judge")
CHAMPION = "champion"
# Rubrics as Rewards (arXiv 2507.17746), section 3: pitfalls are phrased positively ("doesn't ..."), so they add too.
LEVELS = {"essential": 1.0, "important": 0.7, "optional": 0.3, "pitfall": 0.9}
ResponseFormat = Literal["text", "json_object", "json_schema", "structured_outputs"]


class CriterionConfig(StrictConfig):
    """One criterion of a rubric: its level, or a weight of its own."""

    criterion: str = Field(min_length=1, description="what a good answer does, as a statement that is met or not")
    level: str | None = Field(None, description=f"{', '.join(LEVELS)}; essential when there is no weight either")
    weight: float | None = Field(
        None, allow_inf_nan=False, description="instead of a level; below 0: what a good answer doesn't do"
    )

    @model_validator(mode="after")
    def _weighed_once(self) -> Self:
        if self.level is not None and self.weight is not None:
            raise ValueError("a criterion has a level or a weight, not both")
        if self.level is not None and self.level.lower() not in LEVELS:
            raise ValueError(f"level {self.level!r} is unknown; expected {', '.join(LEVELS)}, or give a weight")
        return self

    @property
    def value(self) -> float:
        """The weight: its own, or its level's."""
        return self.weight if self.weight is not None else LEVELS[(self.level or "essential").lower()]


def check_weights(criteria: list[CriterionConfig]) -> None:
    """Raises `ValueError` for a rubric in which nothing can be gained: its scores would have no scale."""
    if not any(criterion.value > 0 for criterion in criteria):
        raise ValueError("no criterion has a positive weight, so there is nothing to divide by; give one a weight")


class EndpointConfig(StrictConfig):
    """An OpenAI-compatible chat completions endpoint. The key stands in an environment variable, never here."""

    base_url: str = unhashed(..., "such as https://api.openai.com/v1: what comes before /chat/completions")
    model: str = Field(min_length=1, description="as the endpoint calls it")
    key_variable: str | None = unhashed(
        None, "the environment variable that holds the key; none: no key is sent", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"
    )
    response_format: ResponseFormat = Field(
        "text",
        description="how the verdict's form is forced: text (asked for, then strictly parsed), json_object, "
        "json_schema (OpenAI's), structured_outputs (vLLM's own parameter)",
    )
    token_limit: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="the name under which the endpoint takes the limit of an answer"
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="more of the request's body, such as {reasoning_effort: low}"
    )
    concurrency: int = unhashed(8, "requests in flight at a time, over all shards of this process", ge=1)
    requests_per_minute: float | None = unhashed(None, "at most; none: as many as come back", gt=0)
    tokens_per_minute: float | None = unhashed(None, "prompt and answer, at most; none: as many as come back", gt=0)
    retries: int = unhashed(5, "further tries after 429, 5xx, a broken connection or a time-out", ge=0)
    backoff_s: float = unhashed(1.0, "the first retry waits up to this, the next up to twice as long", gt=0)
    timeout_s: float = unhashed(120.0, "the longest that one try may take, in seconds", gt=0)
    prompt_price: float = unhashed(0.0, "dollars per million prompt tokens", ge=0)
    completion_price: float = unhashed(0.0, "dollars per million tokens of the judge's answer", ge=0)

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, base_url: str) -> str:
        check_address(base_url, "name an environment variable in key_variable instead")
        return base_url.rstrip("/")


class LocalJudgeConfig(StrictConfig):
    """A model that an engine of this process serves."""

    # The model's artifact is an input of the stage: its weights are hashed, and not where they lie.
    model: str = unhashed(..., f"{CHAMPION} (the best policy so far), a folder, or package:NAME", min_length=1)
    engine: EngineConfig = EngineConfig()


class JudgeConfig(StrictConfig):
    """A judge: exactly one of `endpoint` and `local`, and how it judges."""

    endpoint: EndpointConfig | None = Field(None, description="any OpenAI-compatible server")
    local: LocalJudgeConfig | None = Field(None, description="the champion or another model, served here")
    temperature: float | None = Field(0.0, ge=0, description="0: the likeliest verdict; null: not sent to the endpoint")
    max_tokens: int = Field(1024, ge=8, description="longest answer of the judge, its reasons among it")
    seed: int = Field(0, ge=0, description="of the judge's sampling, and of who meets whom in pairs")
    instructions: str = Field("", description="what the judge should know besides: the task's own standard")
    rubric: Literal["explicit", "implicit"] = Field(
        "explicit", description="explicit: yes or no to every criterion; implicit: one score in view of all of them"
    )
    criteria: list[CriterionConfig] = Field(
        default_factory=list, description="for prompts without a rubric of their own"
    )
    points: int | None = Field(None, ge=2, le=100, description="of a scale from 1; default 10, against a reference 5")
    opponents: int = Field(
        4, ge=1, description="in pairs: how many others of its group each answer meets, in both orders"
    )

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        if (self.endpoint is None) == (self.local is None):
            raise ValueError("a judge needs a model: give exactly one of endpoint (base_url, model) and local (model)")
        if self.local is not None and self.max_tokens >= self.local.engine.max_model_len:
            raise ValueError(
                f"max_tokens {self.max_tokens} leaves no room for a prompt below local.engine.max_model_len "
                f"({self.local.engine.max_model_len})"
            )
        if self.criteria:
            check_weights(self.criteria)
        return self

    @property
    def local_model(self) -> str | None:
        """The model that an engine here serves, if one does."""
        return self.local.model if self.local else None

    @property
    def prices(self) -> tuple[float, float]:
        """Dollars per million tokens of prompt and of answer; a local model is free."""
        return (self.endpoint.prompt_price, self.endpoint.completion_price) if self.endpoint else (0.0, 0.0)


def check_judge(grader: str, judging: JudgeConfig | None, params: dict[str, Any], from_iteration: int) -> None:
    """Raises `ValueError` for a grader whose judge can't be: it has none, or it would score held-out prompts."""
    if grader == "majority" and from_iteration == 0:
        raise ValueError(
            "agreement among a prompt's own answers says how sure a policy is, not that it is right: promoting by it "
            "on held-out prompts rewards collapse; set from_iteration to 1, and add a grader for the held-out prompts"
        )
    if grader not in JUDGES:
        if judging is not None:
            raise ValueError(f"judging is for the graders {', '.join(JUDGES)}, not for {grader!r}")
        return
    if judging is None:
        raise ValueError(f"grader {grader!r} needs judging: who judges (endpoint or local), and how")
    if params:
        raise ValueError(f"grader {grader!r} takes no params; its settings go into judging")
    if from_iteration > 0:
        return
    if grader == "pairwise":
        raise ValueError(
            "a win rate among a prompt's own answers is 0.5 on average, whoever wrote them: it says nothing of "
            "held-out prompts; set from_iteration to 1"
        )
    if judging.local_model == CHAMPION:
        raise ValueError(
            "the champion changes, so its scores of held-out prompts can't be compared; set from_iteration to 1"
        )


def scale(judging: JudgeConfig, default: int) -> int:
    """The points of a judge's scale."""
    return default if judging.points is None else judging.points


def is_finite_number(value: Any) -> bool:
    """Whether a JSON value is a number: true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
