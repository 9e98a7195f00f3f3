"""Configuration of the reward model."""

from typing import Literal

from pydantic import Field

from storage.config_base import StrictConfig, unhashed


class RewardModelConfig(StrictConfig):
    """How preferences become a scorer: a LoRA adapter and a scalar head on the policy's base model."""

    enabled: bool = unhashed(True, "without one, only verifiers grade")
    train_every: int = unhashed(3, "iterations between two trainings; the first is after the first iteration", ge=1)
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

    def due(self, iteration: int) -> bool:
        """Whether a reward model is trained in this iteration: the first, and every `train_every` after it."""
        return self.enabled and (iteration - 1) % self.train_every == 0
