"""How many samples per prompt a budget of rollouts pays for, and what goes with it.

The fits are those of the IsoCompute Playbook (arXiv 2603.12151): Qwen2.5-7B-Instruct, GRPO, answers of up to 8,192
tokens. C = B_p n M: rollouts = prompts per batch x samples per prompt x updates.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from tasks._maths.sigmoid import Sigmoid

Difficulty = Literal["easy", "hard"]
GRID_FLOOR = 8
FITTED_SIZE_B = 7.0
BATCH_RANGE = (32, 1024)
LORA_RATE_FACTOR = 10.0
GROUP_SIZES = (4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class IsoFit:
    """log2 n*(C) = floor + height / (1 + exp(-slope (log10 C - midpoint))), and the C for which it was fitted.

    `low` is the lowest point of the paper's frontier; to `high` its values are tabulated. In rollouts, or in tokens
    for the fit over tokens (there the ends are those of the rollouts times 10^(9.18 - 5.84), the ratio of the two
    midpoints).
    """

    label: str
    difficulty: Difficulty
    sigmoid: Sigmoid
    low: float = 6e4
    high: float = 1e7
    unit: Literal["rollouts", "tokens"] = "rollouts"

    def samples(self, compute: float) -> float:
        """n*, the best number of samples per prompt, not rounded. `compute` > 0 in the fit's unit."""
        return float(2.0 ** self.sigmoid(math.log10(compute)))

    def covers(self, compute: float) -> bool:
        """Whether the budget lies in the fitted range."""
        return self.low <= compute <= self.high


_TOKENS = 10 ** (9.18 - 5.84)
# Height, slope, midpoint and floor as the figures print them; the slope of 50 is the bound of the paper's
# optimizer: a step, not a measured slope.
FITS: dict[str, IsoFit] = {
    "easy": IsoFit("easy, 32 prompts a batch (figure 6)", "easy", Sigmoid(6.09, 4.75, 5.84, 2.73)),
    "hard": IsoFit("hard, 32 prompts a batch (figure 6)", "hard", Sigmoid(4.47, 7.23, 5.84, 2.79)),
    "easy_joint": IsoFit("easy, any batch (figure 10)", "easy", Sigmoid(5.67, 8.84, 6.08, 3.08)),
    "hard_joint": IsoFit("hard, any batch (figure 10)", "hard", Sigmoid(3.97, 50.0, 6.13, 3.04)),
    "easy_tokens": IsoFit(
        "easy, over tokens (figure 23)",
        "easy",
        Sigmoid(6.62, 3.47, 9.18, 2.64),
        6e4 * _TOKENS,
        1e7 * _TOKENS,
        "tokens",
    ),
}
# Where n* stops rising for other models of the paper, on easy prompts, and for few prompts.
MODEL_CEILINGS: dict[float, tuple[str, int]] = {4.0: ("Qwen3-4B", 64), 8.0: ("Llama-3.1-8B", 16)}
FEW_PROMPTS, FEW_PROMPTS_CEILING = 500, 256
# Mean pass rate of the paper's prompts: easy 0.3 to 0.6, hard up to 1/16.
EASY_PASS_RATES, HARD_PASS_RATES = (0.3, 0.6), (0.0, 0.0625)


class Band(NamedTuple):
    """A range of budgets and what it is good for."""

    name: str
    low: int
    high: int
    good_for: str


BANDS = (
    Band("trial", 0, 999, "seeing that everything works; too little to learn from"),
    Band("small", 1_000, 20_000, "experiments and ablations: probing a reward model, shaping a behaviour"),
    Band("middle", 20_000, 100_000, "midsize updates: enough coverage to learn without collapse, as a rule of thumb"),
    Band("large", 100_000, 1_000_000, "general tuning at the frontier, or the redundancy that a noisy reward needs"),
    Band("beyond", 1_000_000, 10**18, "past diminishing returns in most reports; more samples per prompt pay off here"),
)


def band_of(rollouts: float) -> Band:
    """The band that a budget falls into; its upper end belongs to it."""
    return next(band for band in BANDS if rollouts <= band.high)


@dataclass(frozen=True)
class Allocation:
    """A budget cut up: `samples` x `prompts` x `updates` rollouts, at most the budget."""

    best_samples: float
    samples: int
    prompts: int
    updates: int

    @property
    def rollouts_per_update(self) -> int:
        return self.samples * self.prompts


def allocate(
    rollouts: float,
    best_samples: float,
    *,
    difficulty: Difficulty,
    prompts: int | None = None,
    ceiling: int | None = None,
) -> Allocation:
    """Cut a budget: n from the fit on the paper's grid of powers of two from 8 on, a moderate batch, the rest updates.

    Reward hardly depends on prompts per batch between 32 and 1,024 (it changes by about 2 %); hard prompts get the
    larger batch. A budget below one batch is one update of fewer prompts.
    """
    grid = max(GRID_FLOOR, 2 ** round(math.log2(best_samples)))
    samples = min(grid, ceiling) if ceiling else grid
    wanted = prompts or (32 if difficulty == "easy" else 64)
    taken = max(1, min(wanted, int(rollouts) // samples))
    return Allocation(best_samples, samples, taken, max(1, int(rollouts) // (samples * taken)))


def learning_rates(rollouts_per_update: float) -> dict[str, float]:
    """eta = 1e-6 sqrt(B / 1024) for full weights, B rollouts an update; ten times that for LoRA.

    arXiv 2603.12151, section on learning rates: the square root beats linear (unstable) and constant (slow). The
    factor is that of "LoRA without regret". For a 7B model: smaller ones take more.
    """
    full = 1e-6 * math.sqrt(rollouts_per_update / 1024)
    return {"full": full, "lora": LORA_RATE_FACTOR * full}


def model_ceiling(size_b: float | None, difficulty: Difficulty) -> tuple[str, int] | None:
    """The model of about that size for which a lower ceiling of n was measured, and the ceiling; easy prompts only."""
    if size_b is None or difficulty == "hard":
        return None
    return next((known for size, known in MODEL_CEILINGS.items() if abs(size_b - size) <= 0.1 * size), None)


def informative(pass_rate: Float[np.ndarray, "*prompts"] | float, samples: int) -> Float[np.ndarray, "*prompts"]:
    """1 - p^n - (1 - p)^n: the chance that a group of n samples has both passes and failures."""
    p = np.asarray(pass_rate, dtype=np.float64)
    return 1.0 - p**samples - (1.0 - p) ** samples


def informative_posterior(
    alpha: Float[np.ndarray, " prompts"], beta: Float[np.ndarray, " prompts"], samples: int
) -> Float[np.ndarray, " prompts"]:
    """The same where the pass rate is known as Beta(alpha, beta): its expectation, in closed form.

    E[p^n] = prod_{i<n} (alpha + i) / (alpha + beta + i), and (1 - p) likewise with beta.
    """
    a, b = np.asarray(alpha, dtype=np.float64), np.asarray(beta, dtype=np.float64)
    all_pass, all_fail = np.ones_like(a), np.ones_like(b)
    for drawn in range(samples):
        all_pass *= (a + drawn) / (a + b + drawn)
        all_fail *= (b + drawn) / (a + b + drawn)
    return 1.0 - all_pass - all_fail
