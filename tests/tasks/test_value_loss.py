"""The critic's clipped loss, by hand."""

import pytest
import torch

from tasks._maths.value_loss import clipped_value_loss


@pytest.mark.parametrize(
    ("value", "target", "loss", "gradient"),
    [
        (0.1, 1.0, 0.405, -0.9),
        (0.5, 1.0, 0.320, 0.0),
        (0.5, -1.0, 1.125, 1.5),
        (-0.5, 1.0, 1.125, -1.5),
        (0.2, 0.2, 0.0, 0.0),
    ],
)
def test_a_value_moves_at_most_a_clip_towards_its_return(value, target, loss, gradient):
    """V_old = 0, clip 0.2: 0.5 max((V - R)^2, (clip(V) - R)^2). Beyond the clip, only the way back has a gradient."""
    values = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    old, returns = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([[target]], dtype=torch.float64)
    found = clipped_value_loss(values, old, returns, 0.2)
    assert found.shape == (1, 1)
    assert found.item() == pytest.approx(loss)
    assert torch.autograd.grad(found.sum(), values)[0].item() == pytest.approx(gradient, abs=1e-12)
