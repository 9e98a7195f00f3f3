"""What a critic is trained on."""

import torch
from jaxtyping import Float
from torch import Tensor

Values = Float[Tensor, "*shape"]


def clipped_value_loss(values: Values, old_values: Values, returns: Values, clip: float) -> Values:
    """0.5 max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) per token, in squared reward.

    PPO's implementation (Engstrom et al., arXiv 2005.12729): no gradient once V went `clip` towards R.
    `old_values` and `returns` carry no gradient.
    """
    near = torch.clamp(values, old_values - clip, old_values + clip)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())
