"""How a reward model is checked on held-out pairs, and which calibration comes of it."""

from typing import Literal, Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig, unhashed


class CheckedEnsemble(StrictConfig):
    """How members become one reward: as the grader that will use the reward model does it."""

    how: Literal["mean", "wco", "uwo", "soft"] = Field(
        "mean", description="mean; wco: the lowest member; uwo: mean - strength x variance; soft: a soft minimum"
    )
    strength: float = Field(0.5, ge=0, description="lambda of uwo (0.5 for best of n, 0.1 for PPO), beta of soft")

    @model_validator(mode="after")
    def _soft_has_a_beta(self) -> Self:
        if self.how == "soft" and self.strength == 0:
            raise ValueError("soft with strength 0; beta is above 0")
        return self


class LengthConfig(StrictConfig):
    """Whether the calibration takes away what length adds to the reward."""

    mitigate: Literal["never", "auto", "always"] = Field(
        "never", description="auto: where the correlation at fixed quality is clearly there and above the limit"
    )
    by: Literal["fixed_quality", "lowess"] = Field(
        "fixed_quality",
        description="fixed_quality: what length adds to pairs of known quality; lowess: all that goes with length",
    )
    limit: float = Field(0.05, gt=0, lt=1, description="|correlation| below which a reward is free of length")
    min_pairs: int = Field(100, ge=20, description="with fewer held-out pairs no effect of length is fitted")


class CalibrationConfig(StrictConfig):
    """How rewards come to people's units."""

    to: Literal["auto", "absolute", "log_odds", "none"] = Field(
        "auto",
        description="absolute: people's scores; log_odds: differences are log-odds of being preferred; auto: the first "
        "where there are enough scores, else the second",
    )
    affine_from: int = Field(30, ge=5, description="answers with an absolute score from which an affine map is fitted")
    isotonic_from: int = Field(200, ge=20, description="and from which an isotonic one")
    min_pairs: int = Field(50, ge=10, description="pairs from which the log-odds are fitted")
    folds: int = Field(5, ge=2, description="each answer is judged by a map that was fitted without its cluster")


class RewardCheckConfig(StrictConfig):
    """The check of a reward model."""

    ensemble: CheckedEnsemble = CheckedEnsemble()
    length: LengthConfig = LengthConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    level: float = Field(0.9, gt=0, lt=1, description="of the intervals whose coverage is measured")
    max_pairs: int = Field(1_000, ge=1, description="more held-out pairs are sampled down, by seed")
    max_fresh: int = Field(256, ge=1, description="more fresh answers are sampled down, whole prompts, by seed")
    max_tokens: int = Field(2048, ge=8, description="a pair whose prompt and answers are longer is left out")
    min_slice: int = Field(30, ge=5, description="smaller slices of domain, length, source or annotator aren't shown")
    worst_slices: int = Field(12, ge=0, description="slices that are kept, the worst first")
    device: str = unhashed("auto", "auto, cpu or cuda")
    tokens_per_microbatch: int | None = unhashed(
        None, "packed tokens computed at once, which bounds memory; none: 1,024 on a CPU, 16,384 on a GPU", ge=8
    )
