"""KL estimators: Schulman's table for two normal distributions, and what each is worth as a loss."""

import pytest
import torch

from tasks._maths.kl import KL_ESTIMATORS, k1, k2, k3


@pytest.mark.parametrize(
    ("mu", "name", "std", "bias"),
    [
        (0.1, "k1", 20.0, 0.0),
        (0.1, "k2", 1.4177, 0.0025),
        (0.1, "k3", 1.4166, 0.0),
        (1.0, "k1", 2.0, 0.0),
        (1.0, "k2", 1.7321, 0.25),
        (1.0, "k3", 1.6950, 0.0),
    ],
)
def test_schulman_table_of_bias_and_deviation(mu, name, std, bias):
    """q = N(0, 1), p = N(mu, 1): std/true and bias/true, by quadrature over x ~ q."""
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    policy = torch.distributions.Normal(0.0, 1.0).log_prob(x)
    reference = torch.distributions.Normal(mu, 1.0).log_prob(x)
    weight = policy.exp() * (x[1] - x[0])
    values, true = KL_ESTIMATORS[name](policy, reference), mu**2 / 2
    mean = (values * weight).sum()
    deviation = ((values - mean).square() * weight).sum().sqrt()
    assert float(mean / true) - 1 == pytest.approx(bias, abs=1e-4)
    assert float(deviation / true) == pytest.approx(std, rel=1e-4)


def categorical():
    torch.manual_seed(0)
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    return logits, torch.log_softmax(torch.randn(7, dtype=torch.float64), 0)


def gradient(value, logits):
    return torch.autograd.grad(value, logits)[0]


def test_gradients_as_a_loss_on_policy():
    """E grad k1 = 0; E grad k2 = grad KL(pi || ref); E grad k3 = grad KL(ref || pi). Exact over all outcomes."""
    logits, reference = categorical()
    policy = torch.log_softmax(logits, 0)
    sampled = policy.exp().detach()
    reverse = gradient((policy.exp() * (policy - reference)).sum(), logits)
    forward = gradient((reference.exp() * (reference - torch.log_softmax(logits, 0))).sum(), logits)
    for estimator, expected in ((k1, torch.zeros(7)), (k2, reverse), (k3, forward)):
        found = gradient((sampled * estimator(torch.log_softmax(logits, 0), reference)).sum(), logits)
        torch.testing.assert_close(found, expected.double(), atol=1e-12, rtol=1e-9)
