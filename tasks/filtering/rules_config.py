"""The rules of the filter as a run file writes them: one model a rule, its options with their defaults.

A default that is a number of the field names its source; `tasks.filtering.rules` holds what each rule computes.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig

MIN_SIMILARITY = 0.6
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Rule(StrictConfig):
    """What every rule has."""

    scope: Literal["rollout", "group"] = Field(
        "rollout", description="group: where the rule drops one rollout, its whole group falls"
    )
    sees: Literal["all", "kept"] = Field(
        "all", description="all: every rollout with a reward; kept: those that no earlier rule dropped"
    )

    @property
    def kind(self) -> str:
        """The rule's entry in `tasks.filtering.rules.RULES`."""
        return str(getattr(self, "rule"))  # noqa: B009 every rule class has its own literal

    @property
    def scored_by(self) -> tuple[str, ...]:
        """The graders whose scores it reads."""
        return ()

    @property
    def reads_grades(self) -> bool:
        """Whether it reads what single graders said beside their scores."""
        return False

    @property
    def named(self) -> tuple[str, ...]:
        """The graders that it names."""
        return self.scored_by


class NoVariance(_Rule):
    """Groups whose rewards are all alike: every advantage is 0. The tolerance is SkyRL's."""

    rule: Literal["no_variance"]
    threshold: float = Field(1e-6, ge=0, description="groups whose standard deviation is at most this fall")


class DifficultyBand(_Rule):
    """Groups too hard or too easy (arXiv 2504.03380): the mean over all of the group's rollouts out of the band."""

    rule: Literal["difficulty_band"]
    of: Literal["reward", "passed"] = Field("reward", description="reward: its mean; passed: the share that passed")
    low: float = Field(0.2, allow_inf_nan=False, description="groups below fall")
    high: float = Field(0.8, allow_inf_nan=False, description="groups above fall")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low is {self.low:g}, expected at most high ({self.high:g})")
        return self

    @property
    def reads_grades(self) -> bool:
        return self.of == "passed"


class MaxVariance(_Rule):
    """PODS (arXiv 2504.13818): of each group the rollouts whose rewards vary most, the best i and the worst m - i."""

    rule: Literal["max_variance"]
    sees: Literal["all", "kept"] = "kept"
    keep: int = Field(ge=1, description="m: rollouts that a group keeps")


class BestOnly(_Rule):
    """All but the best rewards of a group fall (best of n)."""

    rule: Literal["best_only"]
    threshold: float = Field(1.0, ge=0, description="how many a group keeps")


class RedundantInGroup(_Rule):
    """Of a group's rollouts that say nearly the same with equal reward, one trains, with the weight of all."""

    rule: Literal["redundant_in_group"]
    # One that another rule dropped could stand for those that stay.
    sees: Literal["kept"] = "kept"
    threshold: float = Field(0.8, ge=0.1, le=1, description="Jaccard similarity of token 5-grams from which on")


class RedundantAcross(_Rule):
    """Outputs that another group, tonight or on an earlier night, has (nearly) too; the first group keeps its own."""

    rule: Literal["redundant_across"]
    sees: Literal["all", "kept"] = "kept"
    by: Literal["signature", "text"] = Field(
        "signature", description="signature: near duplicates by MinHash; text: equal but for case and blanks"
    )
    threshold: float = Field(0.9, ge=MIN_SIMILARITY, le=1, description="signature: similarity from which on")
    nights: int = Field(0, ge=0, description="earlier iterations whose kept rollouts count too")
    min_tokens: int = Field(8, ge=0, description="shorter outputs are alike by chance: they stay")


class Truncated(_Rule):
    """Cut by the length limit (DAPO's overlong filtering)."""

    rule: Literal["truncated"]


class Aborted(_Rule):
    """The engine gave up: the text is no answer of the policy."""

    rule: Literal["aborted"]


class _OfUncertainty(_Rule):
    """What rules that look at the graders' uncertainty have in common."""

    grader: str | None = Field(None, min_length=1, description="whose uncertainty; none: the largest of all graders'")

    @property
    def reads_grades(self) -> bool:
        return True

    @property
    def named(self) -> tuple[str, ...]:
        return (self.grader,) if self.grader else ()


class Uncertain(_OfUncertainty):
    """Rollouts whose graders don't know: uncertainty (a standard deviation of the score) above a limit."""

    rule: Literal["uncertain"]
    threshold: float | None = Field(None, ge=0, allow_inf_nan=False, description="the limit, in the score's unit")
    quantile: Share | None = Field(None, description="instead: the quantile of this iteration's uncertainties")

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if (self.threshold is None) == (self.quantile is None):
            raise ValueError("uncertain takes one limit: give it threshold or quantile (0.9 drops a tenth)")
        return self


class SignalToNoise(_OfUncertainty):
    """Groups whose rewards differ less than the graders' own noise."""

    rule: Literal["signal_to_noise"]
    threshold: float = Field(
        1.0, ge=0, description="groups with a smaller ratio of the rewards' deviation to the mean uncertainty fall"
    )


class Stale(_Rule):
    """Rollouts that are too old: iterations since they were sampled."""

    rule: Literal["stale"]
    threshold: float = Field(ge=0, description="rollouts older than this many iterations fall")


class Disagreement(_Rule):
    """Rollouts on which two graders disagree."""

    rule: Literal["disagreement"]
    graders: tuple[str, str] = Field(description="the two, by their names")
    by: Literal["score", "verdict"] = Field("score", description="score: their difference; verdict: one passes it")
    threshold: float = Field(0.5, ge=0, description="score: rollouts with a larger difference fall")

    @property
    def scored_by(self) -> tuple[str, ...]:
        return self.graders if self.by == "score" else ()

    @property
    def reads_grades(self) -> bool:
        return self.by == "verdict"

    @property
    def named(self) -> tuple[str, ...]:
        return self.graders


class WrongLanguage(_Rule):
    """Outputs in another language than wanted, by py3langid: about 0.3 ms a text of 900 characters."""

    rule: Literal["wrong_language"]
    languages: tuple[str, ...] = Field(min_length=1, description="ISO 639-1 codes that are right")
    min_letters: int = Field(12, ge=0, description="of texts with fewer letters no language can be told: they stay")
    threshold: Share = Field(0.5, description="texts for which the right languages' probability is smaller fall")


class Repetition(_Rule):
    """Outputs that say the same again and again: the share of token n-grams seen before (1 - distinct-n)."""

    rule: Literal["repetition"]
    n: int = Field(3, ge=1, description="tokens of an n-gram")
    threshold: Share = Field(0.5, description="outputs that repeat a larger share fall")


class MajorityOnly(_Rule):
    """Not the answer that most samples of the prompt give: training on self-consistency, without a reference."""

    rule: Literal["majority_only"]
    grader: str = Field("majority", min_length=1, description="the grader whose votes it takes")
    threshold: float = Field(0.5, ge=0, description="rollouts that the votes score lower fall")

    @property
    def scored_by(self) -> tuple[str, ...]:
        return (self.grader,)


class Oversample(_Rule):
    """Drops nothing: moderately difficult groups weigh more, the mean weight of what trains stays as it is."""

    rule: Literal["oversample"]
    strength: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="a group of the largest variance weighs 1 + this, one of none 1"
    )


RuleConfig = Annotated[
    NoVariance
    | DifficultyBand
    | MaxVariance
    | BestOnly
    | RedundantInGroup
    | RedundantAcross
    | Truncated
    | Aborted
    | Uncertain
    | SignalToNoise
    | Stale
    | Disagreement
    | WrongLanguage
    | Repetition
    | MajorityOnly
    | Oversample,
    Field(discriminator="rule"),
]
