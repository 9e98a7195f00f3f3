"""Estimators of KL(pi || ref) from tokens that pi sampled (J. Schulman, "Approximating KL divergence", 2020).

With r = ref(x) / pi(x) and x ~ pi. What an estimator is worth as a penalty depends on where it stands
(arXiv 2506.09477): its value may be unbiased and its gradient still wrong.

| estimator      | value of E        | gradient when used as a loss, on-policy            |
|----------------|-------------------|----------------------------------------------------|
| k1 = -log r    | KL, high variance | expectation 0: no penalty at all                   |
| k2 = log^2 r/2 | biased            | that of KL(pi || ref): the right one               |
| k3 = r-1-log r | KL, low variance  | that of KL(ref || pi): the other direction         |

So k2 belongs in a loss, and k1 in a reward.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

Logprobs = Float[Tensor, "*shape"]


def k1(logprobs: Logprobs, ref_logprobs: Logprobs) -> Logprobs:
    """-log r: unbiased, often negative for a single token."""
    return logprobs - ref_logprobs


def k2(logprobs: Logprobs, ref_logprobs: Logprobs) -> Logprobs:
    """log^2 r / 2: never negative, biased in value, right in gradient."""
    return 0.5 * (logprobs - ref_logprobs).square()


def k3(logprobs: Logprobs, ref_logprobs: Logprobs) -> Logprobs:
    """r - 1 - log r: never negative, unbiased in value, its gradient is that of KL(ref || pi)."""
    log_r = ref_logprobs - logprobs
    return log_r.expm1() - log_r


KL_ESTIMATORS: dict[str, Callable[[Logprobs, Logprobs], Logprobs]] = {"k1": k1, "k2": k2, "k3": k3}
