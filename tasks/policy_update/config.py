"""Configuration of the policy update. A run file's `algorithm` sets most of it: see `flows.algorithms`."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from storage.config_base import StrictConfig, unhashed

LEARNING_RATES = {"lora": 2e-4, "full": 2e-5}
PAIR_OBJECTIVES = frozenset({"dpo", "ipo", "cdpo", "robust_dpo"})


class LoraConfig(StrictConfig):
    """The adapter of the first update; later ones go on training the policy's own."""

    rank: int = Field(16, ge=1, description="16 to 32 suffice for RL (methods: LoRA without regret)")
    alpha: int = Field(32, ge=1, description="the adapter is scaled by alpha / rank")
    targets: str | tuple[str, ...] = Field("all-linear", description="module names, or all-linear")


class KlConfig(StrictConfig):
    """A penalty on leaving the reference policy."""

    coefficient: float = Field(0.0, ge=0, description="0: no penalty")
    estimator: Literal["k1", "k2", "k3", "k3_corrected"] = Field(
        "k2",
        description="on-policy, k2 and k3_corrected in the loss and k1 in the reward have the gradient of reverse KL",
    )
    place: Literal["loss", "reward"] = Field("loss", description="reward: per token, before credit is given")
    reference: Literal["first", "start"] = Field(
        "first", description="first: the campaign's first policy; start: the policy before this update"
    )

    @model_validator(mode="before")
    @classmethod
    def _estimator_of_the_place(cls, given: Any) -> Any:
        in_reward = isinstance(given, dict) and given.get("place") == "reward" and "estimator" not in given
        return {**given, "estimator": "k1"} if in_reward else given


class ParityConfig(StrictConfig):
    """Before the first step the trainer recomputes a sample of the engine's log-probabilities."""

    enabled: bool = True
    rows: int = Field(16, ge=1, description="fresh rollouts that are recomputed")
    engine_dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="of the rollouts' engine"
    )
    max_mean_difference: float | None = Field(
        None, gt=0, description="nats per token; none: 0.1, 0.05 with float16, 0.02 where both compute in float32"
    )


class CorrectionConfig(StrictConfig):
    """Importance weights for rollouts of another policy: an older one, or the engine's numerically different one.

    The weight is that of the trainer's pi_old over the engine's probability; `old_logprobs: trainer` is implied.
    """

    kind: Literal["none", "truncate", "mask", "full"] = Field(
        "none", description="truncate: TIS; mask: MIS, IcePop; full: the decoupled objective's factor"
    )
    level: Literal["token", "sequence"] = Field("token", description="sequence: unbiased, of higher variance")
    low: float = Field(0.5, ge=0, description="mask: weights below are 0")
    high: float = Field(2.0, gt=0, description="truncate: weights are at most this; mask: weights above are 0")
    negatives_within: float | None = Field(
        None, gt=0, description="rows of negative advantage that the policy left by more nats per token don't train"
    )
    max_age: int | None = Field(None, ge=0, description="older rollouts don't train; none: any age")

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.kind == "mask" and self.low > self.high:
            raise ValueError(f"low is {self.low}, expected at most high ({self.high})")
        return self


class CriticConfig(StrictConfig):
    """PPO's value head on the policy's last hidden states, and generalised advantage estimation."""

    gae_lambda: float = Field(0.95, ge=0, le=1)
    value_clip: float = Field(0.2, gt=0, description="values move at most this far from the old ones")
    coefficient: float = Field(0.5, ge=0, description="weight of the value loss")
    shares_gradient: bool = Field(False, description="whether the value loss changes the policy's adapter too")


class PairConfig(StrictConfig):
    """Objectives on pairs of answers (DPO and its kin), and KTO's."""

    source: Literal["best_worst", "judges", "preferences"] = Field(
        "best_worst", description="best_worst: of each group; judges: CODPO's; preferences: this iteration's pairs"
    )
    beta: float = Field(0.1, gt=0, description="inverse temperature of the implicit reward")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="cdpo, robust_dpo: share of flipped labels")
    sft_weight: float = Field(0.0, ge=0, description="of the chosen answer's mean token likelihood (IRPO: 1)")
    desirable_weight: float = Field(1.0, ge=0, description="KTO's lambda_D")
    undesirable_weight: float = Field(1.0, ge=0, description="KTO's lambda_U")


class PolicyUpdateConfig(StrictConfig):
    """How trajectories change the policy: an objective, how its sum is divided, and where credit comes from."""

    objective: Literal["clipped", "gspo", "cispo", "likelihood", "dpo", "ipo", "cdpo", "robust_dpo", "kto"] = "clipped"
    aggregate: Literal["constant", "sequence_mean", "token_mean", "sequence_sum", "prompt_mean"] = Field(
        "constant", description="what token sums are divided by; constant: rows x max_tokens (Dr. GRPO)"
    )
    credit: Literal["trajectory", "returns", "gae", "crpg", "crraft"] = Field(
        "trajectory", description="advantages: as filtering took them, or made from the rewards token by token"
    )
    whiten: bool = Field(False, description="advantages to mean 0 and deviation 1 over the tokens of the update")
    positives_only: bool = Field(False, description="rows of negative advantage don't train")
    gamma: float = Field(1.0, gt=0, le=1, description="discount per token of returns and gae")
    clip_low: float = Field(0.2, ge=0, le=1, description="ratios below 1 - clip_low are clipped")
    clip_high: float = Field(0.28, ge=0, description="ratios above 1 + clip_high are clipped (DAPO's clip-higher)")
    dual_clip: float | None = Field(None, gt=1, description="PPO: the loss of a bad token is at most this times -A")
    cgpo_max_kl: float = Field(50.0, gt=0, description="crpg, crraft: nats per answer from which it counts nothing")
    learning_rate: float | None = Field(
        None, gt=0, description="none: 2e-4 with LoRA, a tenth of that with full weights (LoRA without regret)"
    )
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    optimizer_steps: int = Field(4, ge=1, description="optimizer steps an epoch: the prompts are cut into that many")
    epochs: int = Field(1, ge=1)
    max_tokens: int = Field(64, ge=1, description="Dr. GRPO's constant length: the rollouts' token limit")
    old_logprobs: Literal["engine", "trainer"] = Field(
        "engine", description="pi_old of the ratio: as the engine sampled, or recomputed before the first step"
    )
    kl: KlConfig = Field(default_factory=KlConfig)
    correction: CorrectionConfig = Field(default_factory=CorrectionConfig)
    critic: CriticConfig = Field(default_factory=CriticConfig)
    pairs: PairConfig = Field(default_factory=PairConfig)
    replay_iterations: int = unhashed(0, "earlier iterations whose informative groups train again", ge=0)
    replay_share: float | None = Field(
        0.5,
        gt=0,
        lt=1,
        description="of the update's rows that may be replayed, groups of large variance first; none: all of them",
    )
    parameters: Literal["lora", "full"] = Field("lora", description="full: every weight")
    lora: LoraConfig = Field(default_factory=LoraConfig)
    max_grad_norm: float = Field(1.0, gt=0)
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="of the forward pass; trained in float32. auto: bfloat16 where the device has it"
    )
    parity: ParityConfig = Field(default_factory=ParityConfig)
    device: str = unhashed("auto", "auto, cpu or cuda")
    processes: int = unhashed(1, "torchrun processes; above 1 with FSDP2", ge=1)
    share_prefix: bool = unhashed(True, "compute the prompt of a group once instead of once per sample")
    gradient_checkpointing: bool = unhashed(False, "recompute activations in the backward pass: less memory")
    tokens_per_microbatch: int | None = unhashed(
        None, "packed tokens computed at once, which bounds memory; none: 1,024 on a CPU, 16,384 on a GPU", ge=8
    )
    checkpoint_every_steps: int = unhashed(1, "a killed update goes on from its last checkpoint", ge=1)

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        """Refuses what the objective wouldn't read."""
        unread = {
            "correction.kind": self.correction.kind != "none",
            "correction.negatives_within": self.correction.negatives_within is not None,
            "kl.coefficient": self.kl.coefficient > 0,
            "positives_only": self.positives_only,
            "whiten": self.whiten,
            "credit": self.credit != "trajectory",
        }
        if self.on_pairs or self.objective == "kto":
            for key in (key for key, given in unread.items() if given):
                raise ValueError(f"objective {self.objective} has no {key}; leave it out")
        if self.on_stored_pairs and self.replay_iterations:
            raise ValueError("stored pairs are this iteration's: replay_iterations has no effect, leave it out")
        if self.credit in ("crpg", "crraft") and self.kl.coefficient > 0 and self.kl.place == "reward":
            raise ValueError(f"credit {self.credit} has a KL bound of its own (cgpo_max_kl): kl.place has to be loss")
        return self

    @property
    def rate(self) -> float:
        """The learning rate that the schedule starts from."""
        return self.learning_rate or LEARNING_RATES[self.parameters]

    @property
    def on_pairs(self) -> bool:
        """Whether the objective compares two answers."""
        return self.objective in PAIR_OBJECTIVES

    @property
    def on_stored_pairs(self) -> bool:
        """Whether it learns from the preferences stage's pairs, not from the trajectories."""
        return self.on_pairs and self.pairs.source == "preferences"

    @property
    def replays_uncorrected(self) -> bool:
        """Whether older rollouts train without a factor for the policy that sampled them.

        The ratio to the engine's log-probabilities is one; pairs and KTO need none.
        """
        rated = self.objective != "likelihood" and self.old_logprobs == "engine"
        apart = self.on_pairs or self.objective == "kto"
        return self.replay_iterations > 0 and self.correction.kind == "none" and not (rated or apart)

    @property
    def needs_reference(self) -> bool:
        """Whether the reference policy's log-probabilities enter the objective."""
        return self.on_pairs or self.objective == "kto" or self.kl.coefficient > 0 or self.credit in ("crpg", "crraft")

    @property
    def needs_trainer_logprobs(self) -> bool:
        """Whether the trainer recomputes the rollouts under the policy before the first step."""
        correction = self.correction
        corrected = correction.kind != "none" or correction.negatives_within or self.old_logprobs == "trainer"
        return bool(corrected) or (self.needs_reference and self.kl.reference == "start")
