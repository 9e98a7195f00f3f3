"""How a rollout's grades become one reward: an ordered list of small steps, with overrides per domain.

Three phases, in the list's order: steps on single graders' scores, one combination, steps on the reward. Where no
combination stands, `weighted_mean` is put before the first step that names no graders.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig


class _Step(StrictConfig):
    """What every step has."""

    name: str | None = Field(None, min_length=1, description="how `components` call what it added; default: the step")

    @property
    def kind(self) -> str:
        """The step's entry in the tables of `tasks.grading.steps`."""
        return str(getattr(self, "step"))  # noqa: B009 every step class has its own literal

    @property
    def label(self) -> str:
        """The name of its term in `components`."""
        return self.name or self.kind


class _OnScores(_Step):
    """A step on graders' scores before the combination, on the whole reward after it."""

    graders: list[str] | None = Field(
        None, min_length=1, description="before the combination: whose scores; default: every grader's"
    )


class Normalise(_OnScores):
    """(x - mean) / (std + 1e-6): GDPO (arXiv 2601.05242) in the group, whitening over the batch."""

    step: Literal["normalise"]
    scope: Literal["group", "batch"] = Field("group", description="what mean and deviation are taken over")


class Clip(_OnScores):
    """Bounds."""

    step: Literal["clip"]
    low: float | None = Field(None, allow_inf_nan=False, description="values below become it")
    high: float | None = Field(None, allow_inf_nan=False, description="values above become it")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.low is None and self.high is None:
            raise ValueError("clip bounds nothing; give it low, high or both")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"clip.low is {self.low:g}, expected at most clip.high ({self.high:g})")
        return self


class Threshold(_OnScores):
    """Below `at` counts as 0."""

    step: Literal["threshold"]
    at: float = Field(allow_inf_nan=False, description="values below count as 0")
    binary: bool = Field(False, description="values from it on count as 1")


class WeightedMean(_Step):
    """sum_i w_i s_i / sum_i w_i."""

    step: Literal["weighted_mean"]


class WeightedSum(_Step):
    """sum_i w_i s_i."""

    step: Literal["weighted_sum"]


class Product(_Step):
    """prod_i s_i ^ (w_i / sum w), the weighted geometric mean: one score of 0 makes it 0."""

    step: Literal["product"]


class Gate(_Step):
    """A stated reward where a judge fails: CGPO's binary judges (arXiv 2409.20370), all of which must pass."""

    step: Literal["gate"]
    graders: list[str] | None = Field(None, min_length=1, description="who must pass; default: the graders with judge")
    at_least: float | None = Field(
        None, allow_inf_nan=False, description="passes from this score on; default: the grader's verdict"
    )
    otherwise: float = Field(0.0, allow_inf_nan=False, description="the reward where one fails")


class SoftOverlong(_Step):
    """DAPO's equation 13 (arXiv 2503.14476): 0 up to max_tokens - buffer_tokens, then linearly to -1 at max_tokens."""

    step: Literal["soft_overlong"]
    max_tokens: int = Field(ge=1, description="tokens of a response from which on the penalty is whole")
    buffer_tokens: int = Field(ge=1, description="tokens below max_tokens in which it grows")
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="the whole penalty")

    @model_validator(mode="after")
    def _buffer_fits(self) -> Self:
        if self.buffer_tokens > self.max_tokens:
            raise ValueError(f"buffer_tokens is {self.buffer_tokens}, expected at most max_tokens ({self.max_tokens})")
        return self


class LengthPenalty(_Step):
    """-per_token for every token beyond the free ones."""

    step: Literal["length_penalty"]
    per_token: float = Field(gt=0, allow_inf_nan=False, description="reward that a token costs")
    free_tokens: int = Field(0, ge=0, description="tokens that cost nothing")


class LengthControl(_Step):
    """The reward less its least-squares fit on length: what the reward says beside length (LC-AlpacaEval's idea)."""

    step: Literal["length_control"]
    feature: Literal["linear", "tanh"] = Field(
        "linear", description="tokens as they are, or tanh(difference / std) as LC-AlpacaEval has it"
    )
    within: Literal["group", "batch"] = Field(
        "group", description="group: lengths and rewards against their prompt's mean, one slope for the batch"
    )


ComponentStep = Normalise | Clip | Threshold
Combination = WeightedMean | WeightedSum | Product
RewardStep = Normalise | Clip | Threshold | Gate | SoftOverlong | LengthPenalty | LengthControl
Step = Annotated[
    Normalise | Clip | Threshold | WeightedMean | WeightedSum | Product | Gate | SoftOverlong | LengthPenalty
    | LengthControl,
    Field(discriminator="step"),
]  # fmt: skip
COMBINATIONS = (WeightedMean, WeightedSum, Product)
ON_SCORES = (Normalise, Clip, Threshold)


class Phases(NamedTuple):
    """The steps by what they act on."""

    components: Sequence[ComponentStep]
    combination: Combination
    reward: Sequence[RewardStep]


def phases(steps: Sequence[Any]) -> Phases:
    """The three phases of a list of steps. Raises `ValueError` for a list that has no such phases."""
    places = [place for place, step in enumerate(steps) if isinstance(step, COMBINATIONS)]
    if len(places) > 1:
        found = [steps[place].kind for place in places]
        raise ValueError(f"expected one combination of the graders' scores, found {found}")
    on_graders = [isinstance(step, ON_SCORES) and step.graders is not None for step in steps]
    place = places[0] if places else next((at for at, named in enumerate(on_graders) if not named), len(steps))
    combination = steps[place] if places else WeightedMean(step="weighted_mean")
    before, after = steps[:place], steps[place + 1 if places else place :]
    for step in before:
        if not isinstance(step, ON_SCORES):
            raise ValueError(f"{step.kind} acts on the reward: it comes after {combination.kind}, not before")
    for step in after:
        if isinstance(step, ON_SCORES) and step.graders is not None:
            raise ValueError(
                f"{step.kind} of {step.graders} acts on graders' scores: it comes before {combination.kind}, not after"
            )
    labels = [step.label for step in (*before, combination, *after)]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"two steps are called {label!r}; give one of them another name")
    return Phases(before, combination, after)


class DomainConfig(StrictConfig):
    """What is otherwise for the prompts of a domain."""

    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict, description="grader -> its weight here"
    )
    steps: list[Step] | None = Field(None, description="instead of the composite's steps")

    @model_validator(mode="after")
    def _in_phases(self) -> Self:
        phases(self.steps or [])
        return self


class CompositeConfig(StrictConfig):
    """From grades to the reward; the default is the weighted mean."""

    steps: list[Step] = Field(default_factory=list, description="in order; none: weighted_mean")
    domains: dict[str, DomainConfig] = Field(default_factory=dict, description="domain of the prompt -> overrides")
    missing: Literal["hold", "fast_only", "impute"] = Field(
        "hold",
        description="a slow grader's grade is missing. hold: no reward; fast_only: the whole group takes the instant "
        "graders' composite; impute: a control variate from the instant graders, corrected by what was observed",
    )

    held_out: bool = Field(
        False, description="whether it scores the held-out prompts too; else their score is the weighted mean"
    )

    @model_validator(mode="after")
    def _in_phases(self) -> Self:
        phases(self.steps)
        return self

    @property
    def is_default(self) -> bool:
        """Whether the reward is the weighted mean and nothing else."""
        return not self.steps and not self.domains and self.missing == "hold"

    def of_domain(self, domain: str) -> tuple[Phases, dict[str, float]]:
        """The steps of a domain, and the weights that it changes."""
        own = self.domains.get(domain, DomainConfig())
        return phases(self.steps if own.steps is None else own.steps), own.weights

    def without(self, gone: Callable[[str], bool], judges: bool) -> "CompositeConfig":
        """The same without the graders that are `gone`: a step that named only such is left out.

        `judges` says whether a judge stays: without one, a gate of all judges is left out too.
        """

        def kept(steps: Sequence[Step]) -> list[Step]:
            return [step for each in steps if (step := _less(each, gone, judges)) is not None]

        domains = {
            domain: own.model_copy(
                update={
                    "weights": {name: weight for name, weight in own.weights.items() if not gone(name)},
                    "steps": None if own.steps is None else kept(_explicit(own.steps)),
                }
            )
            for domain, own in self.domains.items()
        }
        return self.model_copy(update={"steps": kept(_explicit(self.steps)), "domains": domains})

    def weighed(self, usual: Mapping[str, float]) -> "CompositeConfig":
        """The same with equal weights in a domain where those that are left, over the usual ones, are all 0."""
        domains = {
            domain: own
            if any({**usual, **own.weights}.values())
            else own.model_copy(update={"weights": dict.fromkeys(usual, 1.0)})
            for domain, own in self.domains.items()
        }
        return self.model_copy(update={"domains": domains})


def _explicit(steps: Sequence[Step]) -> list[Step]:
    """The steps with their combination: its place must not move when steps are left out. None stays none."""
    if not steps:
        return []
    found = phases(steps)
    return [*found.components, found.combination, *found.reward]


def _less(step: Step, gone: Callable[[str], bool], judges: bool) -> Step | None:
    named = getattr(step, "graders", None)
    if named is None:
        return None if isinstance(step, Gate) and not judges else step
    left = [name for name in named if not gone(name)]
    return step.model_copy(update={"graders": left}) if left else None
