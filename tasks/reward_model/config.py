"""Configuration of the reward model."""

from typing import Literal, Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig, unhashed

Source = Literal["human", "ai", "grader", "click", "counterexample"]


class RewardModelConfig(StrictConfig):
    """How preferences become a scorer: a LoRA adapter and a scalar head on the policy's base model."""

    enabled: bool = unhashed(True, "without one, only verifiers grade")
    train_every: int = unhashed(3, "iterations between two trainings; the first is after the first iteration", ge=1)
    loss: Literal["bradley_terry", "rao_kupper", "davidson", "plackett_luce"] = Field(
        "bradley_terry",
        description="rao_kupper and davidson learn how often no difference is seen; plackett_luce takes the pairs of a "
        "prompt as a ranking where they form one",
    )
    centering: float = Field(0.01, ge=0, description="weight of (chosen + rejected)^2, which keeps scores around zero")
    margin: float = Field(
        0.0,
        ge=0,
        description="nats by which the strongest pairs of a source should differ, the others in proportion to strength",
    )
    smoothing: float = Field(0.0, ge=0, lt=0.5, description="assumed share of swapped labels")
    regression_weight: float = Field(
        0.0, ge=0, description="of (a r + b - h)^2, h being people's absolute scores in deviations of their own"
    )
    kind: Literal["lora", "generative"] = Field(
        "lora", description="lora: scalar heads; generative: the base is asked about an answer, logit(yes) - logit(no)"
    )
    base: Literal["base", "policy"] = Field(
        "base", description="what the adapter comes on top of: the base model, or the policy's own weights"
    )
    question: str = Field(
        "Is the reply above a good one? Answer Yes or No.",
        min_length=1,
        description="what a generative judge is asked after each answer",
    )
    sources: tuple[Source, ...] | None = Field(
        None, min_length=1, description="train on pairs of these sources alone; none: all"
    )
    members: int = Field(1, ge=1, le=64, description="heads of an ensemble on one shared adapter, in one pass")
    bootstrap: bool = Field(
        True, description="each of several members weighs the clusters of prompts its own way: exponentially, mean 1"
    )
    head: Literal["linear", "mlp"] = "linear"
    head_width: int = Field(64, ge=1, description="of an mlp's one hidden layer")
    length_head: bool = Field(False, description="ODIN: a second head takes what length explains, and is dropped")
    length_weight: float = Field(1.0, ge=0, description="of |rho(quality, length)| + 1 - rho(length head, length)")
    orthogonality_weight: float = Field(1.0, ge=0, description="of |W_Q W_L^T|, the two heads' overlap")
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

    @model_validator(mode="after")
    def _loss_takes_its_options(self) -> Self:
        if self.margin and self.loss != "bradley_terry":
            raise ValueError(f"loss {self.loss} knows no margin; expected margin: 0, or loss: bradley_terry")
        if self.regression_weight and self.loss == "plackett_luce":
            raise ValueError(
                "loss plackett_luce knows no absolute scores; expected regression_weight: 0, or another loss"
            )
        if self.smoothing and self.loss == "plackett_luce":
            raise ValueError("loss plackett_luce knows no smoothing; expected smoothing: 0, or another loss")
        return self

    @model_validator(mode="after")
    def _judge_has_the_bases_head(self) -> Self:
        own = {
            "members": self.members > 1,
            "head": self.head != "linear",
            "length_head": self.length_head,
            "layers": self.layers is not None,
        }
        odd = [name for name, is_set in own.items() if is_set]
        if self.kind == "generative" and odd:
            raise ValueError(
                f"kind generative scores by the base's own output projection: {', '.join(odd)} can't be set; "
                "leave it out, or choose kind: lora"
            )
        return self

    def due(self, iteration: int) -> bool:
        """Whether a reward model is trained in this iteration: the first, and every `train_every` after it."""
        return self.enabled and (iteration - 1) % self.train_every == 0
