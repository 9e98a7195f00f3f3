"""KL estimators: Schulman's table for two normal distributions, and what each is worth in a loss and in a reward.

Gradients are exact: sums over all outcomes of a categorical distribution, by float64 autograd.
"""

import pytest
import torch

from tasks._maths.kl import KL_ESTIMATORS, REVERSE_KL_IN_LOSS, REVERSE_KL_IN_REWARD


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
    values, true = KL_ESTIMATORS[name](policy, reference, policy), mu**2 / 2
    mean = (values * weight).sum()
    deviation = ((values - mean).square() * weight).sum().sqrt()
    assert float(mean / true) - 1 == pytest.approx(bias, abs=1e-4)
    assert float(deviation / true) == pytest.approx(std, rel=1e-4)


def categorical(seed=0):
    """Logits with gradient, the reference's log-probabilities, and those of another policy that sampled."""
    generator = torch.Generator().manual_seed(seed)
    logits, reference, old = torch.randn(3, 7, dtype=torch.float64, generator=generator)
    return logits.requires_grad_(), reference.log_softmax(0), old.log_softmax(0)


def gradient(value, logits):
    return torch.autograd.grad(value, logits)[0]


def reverse_gradient(logits, reference):
    """Of KL(pi || ref)."""
    policy = logits.log_softmax(0)
    return gradient((policy.exp() * (policy - reference)).sum(), logits)


def forward_gradient(logits, reference):
    """Of KL(ref || pi)."""
    return gradient((reference.exp() * (reference - logits.log_softmax(0))).sum(), logits)


def loss_gradient(name, logits, reference, old=None):
    """E over x ~ old (the policy itself by default) of the estimator's gradient."""
    policy = logits.log_softmax(0)
    old = policy.detach() if old is None else old
    return gradient((old.exp() * KL_ESTIMATORS[name](policy, reference, old)).sum(), logits)


def reward_gradient(name, logits, reference):
    """E over x ~ pi of (the estimator without gradient) x grad log pi(x): what -estimator in a reward descends."""
    policy = logits.log_softmax(0)
    sampled = policy.detach()
    penalty = KL_ESTIMATORS[name](sampled, reference, sampled)
    return gradient((sampled.exp() * penalty * policy).sum(), logits)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("k1", lambda logits, reference: torch.zeros_like(logits)),
        ("k2", reverse_gradient),
        ("k3", forward_gradient),
        ("k3_corrected", reverse_gradient),
    ],
)
def test_gradient_of_each_estimator_as_a_loss_on_policy(name, expected):
    """E grad k1 = 0; E grad k2 = grad KL(pi || ref); E grad k3 = grad KL(ref || pi); corrected k3 is right again."""
    logits, reference, _ = categorical()
    found = loss_gradient(name, logits, reference)
    torch.testing.assert_close(found, expected(logits, reference), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_estimators_right_in_a_loss_and_in_a_reward_are_exactly_those_listed(seed):
    logits, reference, _ = categorical(seed)
    right = reverse_gradient(logits, reference)
    in_loss = {n for n in KL_ESTIMATORS if torch.allclose(loss_gradient(n, logits, reference), right, atol=1e-9)}
    in_reward = {n for n in KL_ESTIMATORS if torch.allclose(reward_gradient(n, logits, reference), right, atol=1e-9)}
    assert (in_loss, in_reward) == (REVERSE_KL_IN_LOSS, REVERSE_KL_IN_REWARD)


def test_only_the_corrected_k3_is_unbiased_in_value_and_gradient_off_policy():
    logits, reference, old = categorical()
    policy = logits.log_softmax(0)
    true = (policy.exp() * (policy - reference)).sum()
    value = (old.exp() * KL_ESTIMATORS["k3_corrected"](policy, reference, old)).sum()
    torch.testing.assert_close(value, true)
    right = reverse_gradient(logits, reference)
    torch.testing.assert_close(loss_gradient("k3_corrected", logits, reference, old), right)
    for name in ("k1", "k2", "k3"):
        assert not torch.allclose(loss_gradient(name, logits, reference, old), right, atol=1e-3)


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_a_token_that_the_reference_alone_likes_never_overflows(name):
    values = KL_ESTIMATORS[name](torch.tensor([-500.0]), torch.tensor([0.0]), torch.tensor([-500.0]))
    assert torch.isfinite(values).all()
