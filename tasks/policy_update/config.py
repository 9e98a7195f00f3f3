"""Configuration of the policy update."""

from typing import Literal

from pydantic import Field

from storage.config_base import StrictConfig, unhashed


class LoraConfig(StrictConfig):
    """The adapter of the first update; later ones go on training the policy's own."""

    rank: int = Field(16, ge=1, description="16 to 32 suffice for RL (methods: LoRA without regret)")
    alpha: int = Field(32, ge=1, description="the adapter is scaled by alpha / rank")
    targets: str | tuple[str, ...] = Field("all-linear", description="module names, or all-linear")


class KlConfig(StrictConfig):
    """A penalty on leaving the reference policy, which is the base model without the adapter."""

    coefficient: float = Field(0.0, ge=0, description="0: no reference policy is computed")
    estimator: Literal["k1", "k2", "k3"] = Field("k2", description="k2's gradient is that of KL(policy || reference)")


class ParityConfig(StrictConfig):
    """Before the first step the trainer recomputes a sample of the engine's log-probabilities."""

    enabled: bool = True
    rows: int = Field(16, ge=1, description="fresh rollouts that are recomputed")
    max_mean_difference: float = Field(0.1, gt=0, description="nats per token; bf16 alone makes about 0.03")


class PolicyUpdateConfig(StrictConfig):
    """How trajectories change the policy. Advantages are the filtering stage's: trajectories carry them."""

    objective: Literal["dr_grpo", "grpo"] = "dr_grpo"
    learning_rate: float = Field(2e-4, gt=0, description="for LoRA: about ten times that of full fine-tuning")
    optimizer_steps: int = Field(4, ge=1, description="optimizer steps an epoch: the prompts are cut into that many")
    epochs: int = Field(1, ge=1)
    clip_low: float = Field(0.2, ge=0, lt=1, description="ratios below 1 - clip_low are clipped")
    clip_high: float = Field(0.28, ge=0, description="ratios above 1 + clip_high are clipped (DAPO's clip-higher)")
    max_tokens: int = Field(64, ge=1, description="Dr. GRPO's constant length: the rollouts' token limit")
    old_logprobs: Literal["engine", "trainer"] = Field(
        "engine", description="pi_old of the ratio: as the engine sampled, or recomputed before the first step"
    )
    kl: KlConfig = Field(default_factory=KlConfig)
    lora: LoraConfig = Field(default_factory=LoraConfig)
    max_grad_norm: float = Field(1.0, gt=0)
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="of the frozen base; LoRA is float32")
    parity: ParityConfig = Field(default_factory=ParityConfig)
    device: str = unhashed("auto", "auto, cpu or cuda")
    share_prefix: bool = unhashed(True, "compute the prompt of a group once instead of once per sample")
    tokens_per_microbatch: int | None = unhashed(
        None, "packed tokens computed at once, which bounds memory; none: 1,024 on a CPU, 16,384 on a GPU", ge=8
    )
    checkpoint_every_steps: int = unhashed(1, "a killed update goes on from its last checkpoint", ge=1)
