"""Configuration of the reward model."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig, unhashed
from tasks.reward_model.refresh_config import TRAIN_EVERY, TriggerConfig, When


class RewardModelConfig(StrictConfig):
    """How preferences become a scorer: a LoRA adapter and a scalar head on the policy's base model."""

    enabled: bool = unhashed(True, "without one, only verifiers grade")
    when: When = unhashed(
        "offline",
        "offline: one is trained as soon as there are enough pairs, then frozen; every: anew each train_every "
        "iterations; trigger: anew when the present one shows signs of drift",
    )
    train_every: int | None = unhashed(
        None,
        f"iterations between two trainings, the first after iteration 1; given alone it means when: every, which "
        f"takes {TRAIN_EVERY} without it",
        ge=1,
    )
    trigger: TriggerConfig = unhashed(TriggerConfig(), "the signs of drift, for when: trigger")
    watch: bool = unhashed(True, "check the present reward model on the held-out pairs of every iteration")
    loss: Literal["bradley_terry"] = "bradley_terry"
    centering: float = Field(0.01, ge=0, description="weight of (chosen + rejected)^2, which keeps scores around zero")
    learning_rate: float = Field(5e-4, gt=0)
    epochs: int = Field(1, ge=1, description="more than one overfits (InstructGPT)")
    batch_pairs: int = Field(16, ge=1, description="pairs an optimizer step; all pairs of a prompt share one")
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    lora_rank: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)
    layers: int | None = Field(None, ge=1, description="use the base's first layers only; none: all of them")
    min_pairs: int = Field(
        16, ge=2, description="with fewer pairs to train on, an iteration keeps the reward model there is"
    )
    max_pairs: int = Field(20_000, ge=2, description="more pairs to train on are sampled down, by seed")
    max_heldout_pairs: int = Field(1_000, ge=1, description="more held-out pairs are sampled down, by seed")
    max_tokens: int = Field(2048, ge=8, description="a pair whose prompt and answers are longer is left out")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="of the frozen base; LoRA is float32. auto: bfloat16 where the device has it"
    )
    device: str = unhashed("auto", "auto, cpu or cuda")
    tokens_per_microbatch: int | None = unhashed(
        None, "packed tokens computed at once, which bounds memory; none: 1,024 on a CPU, 16,384 on a GPU", ge=8
    )
    checkpoint_every_steps: int = unhashed(4, "a killed training goes on from its last checkpoint", ge=1)

    @model_validator(mode="before")
    @classmethod
    def _every_by_its_interval(cls, document: Any) -> Any:
        """Run files of before had `train_every` alone."""
        if isinstance(document, dict) and document.get("train_every") is not None and "when" not in document:
            return {**document, "when": "every"}
        return document

    @model_validator(mode="after")
    def _interval_where_it_counts(self) -> Self:
        if self.train_every is not None and self.when != "every":
            raise ValueError(
                f"when is {self.when}, and train_every belongs to when: every; take train_every out (or null)"
            )
        return self

    @property
    def interval(self) -> int:
        """Iterations between two trainings under `when: every`."""
        return self.train_every or TRAIN_EVERY

    def due(self, iteration: int, *, present: bool = False) -> bool:
        """Whether the calendar asks for a training in this iteration; `present`: there is a reward model already.

        Under `every` the first iteration and each `interval` after it; else while there is none.
        """
        if not self.enabled:
            return False
        return (iteration - 1) % self.interval == 0 if self.when == "every" else not present
