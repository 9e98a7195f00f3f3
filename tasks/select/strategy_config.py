"""The ways to draw prompts and to share out rollouts, by name, each with its parameters."""

from typing import Literal, Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig


class UniformConfig(StrictConfig):
    """The least drawn prompts first, shuffled anew in every cycle through the pool."""

    name: Literal["uniform"] = "uniform"


class ThompsonConfig(StrictConfig):
    """MoPPS (arXiv 2507.04632): a pass rate is drawn from each posterior, the nearest to the target are taken."""

    name: Literal["thompson"] = "thompson"
    target: float = Field(0.5, ge=0, le=1, description="pass rate at which a group teaches most")
    band: tuple[float, float] | None = Field(
        None, description="instead of the target: pass rates between the two are equally good, such as [0.3, 0.7]"
    )

    @model_validator(mode="after")
    def _band_is_one(self) -> Self:
        _check_band(self.band, "band")
        return self


class VarianceConfig(StrictConfig):
    """Drawn with probability proportional to the variance of an outcome: p(1-p), or the reward's own."""

    name: Literal["variance"] = "variance"
    of: Literal["pass_rate", "reward"] = Field(
        "pass_rate", description="reward: the running variance of the reward, for rewards that aren't pass or fail"
    )


class BandConfig(StrictConfig):
    """Prompts whose expected pass rate lies in a band, in random order; then those nearest to it."""

    name: Literal["band"] = "band"
    low: float = Field(0.2, ge=0, le=1)
    high: float = Field(0.8, ge=0, le=1)

    @model_validator(mode="after")
    def _band_is_one(self) -> Self:
        _check_band((self.low, self.high), "low and high")
        return self


class GresoConfig(StrictConfig):
    """GRESO (arXiv 2506.02177): a prompt without variance z times in a row is skipped with 1 - max(p^z, least).

    One p for prompts that all rollouts pass and one for those that all fail; each moves by `step` from iteration to
    iteration, down while the share of such groups among the sampled ones is at or above its target.
    """

    name: Literal["greso"] = "greso"
    start: float = Field(0.5, gt=0, lt=1, description="p of the first iteration")
    step: float = Field(0.01, ge=0, lt=1, description="by which p moves")
    lowest: float = Field(0.05, gt=0, lt=1)
    highest: float = Field(0.95, gt=0, lt=1)
    easy_target: float = Field(0.25 / 3, ge=0, le=1, description="share of groups that may all pass")
    hard_target: float = Field(0.5 / 3, ge=0, le=1, description="share of groups that may all fail")
    least: float = Field(0.01, gt=0, le=1, description="chance that every prompt keeps")

    @model_validator(mode="after")
    def _starts_within(self) -> Self:
        if not self.lowest <= self.start <= self.highest:
            raise ValueError(f"start is {self.start}, expected between lowest {self.lowest} and highest {self.highest}")
        return self


class EvenConfig(StrictConfig):
    """The same number of rollouts for every prompt."""

    name: Literal["even"] = "even"


class InformativeConfig(StrictConfig):
    """More rollouts where an informative group is harder to get; their sum stays the same.

    First the smallest number whose chance to be informative, at the expected pass rate, reaches the target. What the
    budget can't pay is taken, and what it has left is given, where a rollout adds least and most.
    """

    name: Literal["informative"] = "informative"
    min_samples: int = Field(4, ge=2, description="rollouts of a prompt at least")
    max_samples: int = Field(32, ge=2, description="rollouts of a prompt at most")
    target: float = Field(0.9, gt=0, lt=1, description="chance that some rollouts pass and some fail")


def _check_band(band: tuple[float, float] | None, names: str) -> None:
    if band is not None and not 0 <= band[0] <= band[1] <= 1:
        raise ValueError(f"{names} are {band[0]} and {band[1]}, expected 0 <= low <= high <= 1")
