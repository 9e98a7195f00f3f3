"""Estimators of KL(pi || ref) from tokens that pi sampled (J. Schulman, "Approximating KL divergence", 2020).

With r = ref(x) / pi(x) and x ~ pi. What an estimator is worth as a penalty depends on where it stands
(arXiv 2506.09477): its value may be unbiased and its gradient still wrong.

| estimator          | value of E        | gradient as a loss, on-policy  | in the reward, stop-gradient |
|--------------------|-------------------|--------------------------------|------------------------------|
| k1 = -log r        | KL, high variance | expectation 0: no penalty      | KL(pi || ref): right         |
| k2 = log^2 r / 2   | biased            | KL(pi || ref): right           | another function's           |
| k3 = r - 1 - log r | KL, low variance  | KL(ref || pi): other direction | another function's           |
| (pi / pi_old) k3   | KL, low variance  | KL(pi || ref): right           | another function's           |

So k2 or the corrected k3 belongs in a loss, and k1 in a reward. Every function takes the log-probabilities of the
policy, of the reference and of the policy that sampled; only the corrected k3 uses the last.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from tasks._maths.ratios import MAX_LOG_RATIO, importance_ratio

Logprobs = Float[Tensor, "*shape"]


def k1(logprobs: Logprobs, ref_logprobs: Logprobs, old_logprobs: Logprobs) -> Logprobs:  # noqa: ARG001
    """-log r: unbiased, often negative for a single token; as a loss its expected gradient is 0."""
    return logprobs - ref_logprobs


def k2(logprobs: Logprobs, ref_logprobs: Logprobs, old_logprobs: Logprobs) -> Logprobs:  # noqa: ARG001
    """log^2 r / 2: never negative, biased in value, as a loss right in gradient."""
    return 0.5 * (logprobs - ref_logprobs).square()


def k3(logprobs: Logprobs, ref_logprobs: Logprobs, old_logprobs: Logprobs) -> Logprobs:  # noqa: ARG001
    """r - 1 - log r: never negative, unbiased in value; as a loss its gradient is that of KL(ref || pi).

    The exponential's log r is limited to 20, so that no single token overflows.
    """
    log_r = ref_logprobs - logprobs
    return log_r.clamp(max=MAX_LOG_RATIO).expm1() - log_r


def k3_corrected(logprobs: Logprobs, ref_logprobs: Logprobs, old_logprobs: Logprobs) -> Logprobs:
    """(pi / pi_old) k3 with the gradient through the ratio (DeepSeek-V3.2, arXiv 2512.02556).

    Unbiased in value whatever pi_old sampled, and right in gradient: d(pi k3) sums to that of KL(pi || ref).
    """
    return importance_ratio(logprobs, old_logprobs) * k3(logprobs, ref_logprobs, old_logprobs)


KL_ESTIMATORS: dict[str, Callable[[Logprobs, Logprobs, Logprobs], Logprobs]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "k3_corrected": k3_corrected,
}
# Where an estimator's expected gradient is that of KL(pi || ref).
REVERSE_KL_IN_LOSS = frozenset({"k2", "k3_corrected"})
REVERSE_KL_IN_REWARD = frozenset({"k1"})
