"""Configuration of heads over frozen states."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from storage.config_base import StrictConfig

Ridge = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class MlpConfig(StrictConfig):
    """A head with one hidden layer of tanh, trained by AdamW over all pairs at once."""

    hidden: int = Field(16, ge=1)
    steps: int = Field(200, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    decay: float = Field(1.0, ge=0, description="AdamW's weight decay")
    dropout: float = Field(0.5, ge=0, lt=1, description="of the standardised states")


class FrozenHeadsConfig(StrictConfig):
    """How heads are fitted to stored states, and how well they are known to do."""

    form: Literal["linear", "mlp"] = Field("linear", description="linear: exact, in closed steps; mlp: a hidden layer")
    members: int = Field(5, ge=1, description="heads of the ensemble; each weighs the prompts differently")
    ridges: list[Ridge] = Field(
        [0.1, 0.3, 1.0, 3.0],
        min_length=1,
        description="of a linear head, per feature; the one that does best on left-out training prompts is taken",
    )
    mlp: MlpConfig = MlpConfig()
    smoothing: float = Field(0.0, ge=0, lt=0.5, description="assumed chance that a label is wrong")
    folds: int = Field(5, ge=2, description="of the cross-validation, which is of linear heads")
    repeats: int = Field(3, ge=0, description="cross-validations by different seeds; 0: none")
    curve: list[Share] = Field(
        [0.1, 0.2, 0.4, 0.7, 1.0], description="shares of the training pairs for the learning curve; empty: none"
    )

    @field_validator("curve")
    @classmethod
    def _enough_sizes(cls, curve: list[float]) -> list[float]:
        if curve and len(set(curve)) < 3:
            raise ValueError("a curve takes three different shares at least, or none")
        return sorted(set(curve))
