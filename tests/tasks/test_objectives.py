"""Objectives: expected numbers derived by hand, and independence of the cutting into micro-batches."""

import math

import pytest
import torch

from tasks._maths.objectives import OBJECTIVES, LossInputs, LossOptions, constant_length, own_length
from tasks._maths.pairwise import bradley_terry
from tasks._maths.ratios import importance_ratio, ratio_metrics

OPTIONS = LossOptions(clip_low=0.2, clip_high=0.28, kl_coefficient=0.0, kl_estimator="k2")


def inputs(logprobs, old, advantages, mask, denominators, reference=None, weights=None):
    return LossInputs(
        logprobs=logprobs,
        old_logprobs=old,
        ref_logprobs=reference,
        advantages=torch.tensor(advantages),
        weights=torch.ones(len(advantages)) if weights is None else torch.tensor(weights),
        denominators=denominators,
        mask=mask,
    )


def batch(rows=5, time=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([7, 1, 4, 3, 6])[:rows]
    mask = (torch.arange(time)[None] < lengths[:, None]).float()
    logprobs = -torch.rand(rows, time, generator=generator) * 3
    old = logprobs + 0.3 * torch.randn(rows, time, generator=generator)
    return lengths, mask, logprobs, old, torch.randn(rows, generator=generator).tolist()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient_flows"),
    [
        (1.0, 1.0, -1.0, True),
        (1.5, 1.0, -1.28, False),
        (0.5, 1.0, -0.5, True),
        (1.5, -1.0, 1.5, True),
        (0.5, -1.0, 0.8, False),
    ],
)
def test_clipping_of_one_token(ratio, advantage, loss, gradient_flows):
    """-min(rho A, clip(rho, 0.8, 1.28) A): clipped only where the update would go further."""
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    found = OBJECTIVES["dr_grpo"].loss(
        inputs(logprobs, torch.zeros(1, 1), [advantage], torch.ones(1, 1), torch.ones(1)), OPTIONS
    )
    assert found.loss_sum.item() == pytest.approx(loss, rel=1e-6)
    found.loss_sum.backward()
    assert bool(logprobs.grad.abs().sum() > 0) == gradient_flows
    clipped = found.metrics["clipped_high"].value + found.metrics["clipped_low"].value
    assert clipped == (0.0 if gradient_flows else 1.0)


def test_dr_grpo_divides_by_a_constant_and_grpo_by_each_length():
    lengths, mask, logprobs, old, advantages = batch()
    ratio = (logprobs - old).exp()
    a = torch.tensor(advantages)[:, None]
    token = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a) * mask
    dr_grpo = OBJECTIVES["dr_grpo"]
    found = dr_grpo.loss(inputs(logprobs, old, advantages, mask, dr_grpo.denominators(lengths, 50)), OPTIONS)
    torch.testing.assert_close(found.loss_sum, token.sum() / (5 * 50))
    grpo = OBJECTIVES["grpo"]
    found = grpo.loss(inputs(logprobs, old, advantages, mask, grpo.denominators(lengths, 50)), OPTIONS)
    torch.testing.assert_close(found.loss_sum, (token.sum(1) / lengths).mean())


def test_grpo_has_a_length_bias_and_dr_grpo_has_none():
    lengths = torch.tensor([2, 20])
    assert constant_length(lengths, 30)[0] == constant_length(lengths, 30)[1] == 60
    assert own_length(lengths, 30)[1] == 10 * own_length(lengths, 30)[0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_cutting_into_micro_batches_changes_nothing(name):
    lengths, mask, logprobs, old, advantages = batch()
    objective = OBJECTIVES[name]
    denominators = objective.denominators(lengths, 16)
    whole = logprobs.clone().requires_grad_()
    options = LossOptions(0.2, 0.28, kl_coefficient=0.1, kl_estimator="k2")
    reference = logprobs - 0.2
    all_rows = objective.loss(inputs(whole, old, advantages, mask, denominators, reference), options)
    all_rows.loss_sum.backward()
    cut = logprobs.clone().requires_grad_()
    parts = []
    for rows in ([3, 0], [4], [1, 2]):
        part = inputs(
            cut[rows], old[rows], [advantages[r] for r in rows], mask[rows], denominators[rows], reference[rows]
        )
        parts.append(objective.loss(part, options))
        parts[-1].loss_sum.backward()
    torch.testing.assert_close(cut.grad, whole.grad)
    for metric, expected in all_rows.metrics.items():
        merged = parts[0].metrics[metric].merge(parts[1].metrics[metric]).merge(parts[2].metrics[metric])
        assert merged.value == pytest.approx(expected.value, rel=1e-5), metric


def test_padding_and_weight_zero_add_nothing():
    _, mask, logprobs, old, advantages = batch()
    logprobs = logprobs.clone().requires_grad_()
    weights = [1.0, 1.0, 0.0, 1.0, 1.0]
    OBJECTIVES["dr_grpo"].loss(
        inputs(logprobs, old, advantages, mask, torch.ones(5), weights=weights), OPTIONS
    ).loss_sum.backward()
    assert not logprobs.grad[mask == 0].any()
    assert not logprobs.grad[2].any()
    assert logprobs.grad[0].any()


def test_kl_to_the_reference_is_added_per_token():
    logprobs, reference = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -2.0]])
    options = LossOptions(0.2, 0.28, kl_coefficient=0.5, kl_estimator="k2")
    found = OBJECTIVES["dr_grpo"].loss(
        inputs(logprobs, logprobs, [0.0], torch.ones(1, 2), torch.ones(1), reference), options
    )
    assert float(found.loss_sum) == pytest.approx(0.5 * 0.5 * 0.5**2)
    assert found.metrics["kl_reference"].value == pytest.approx(0.0625)


def test_a_ratio_never_overflows():
    assert torch.isfinite(importance_ratio(torch.tensor([[0.0]]), torch.tensor([[-1000.0]]))).all()


def test_effective_sample_fraction_of_ratios():
    """One token with all the weight is one token in four."""
    ratio, mask = torch.tensor([[4.0, 0.0], [0.0, 0.0], [9.0, 9.0]]), torch.tensor([[1.0, 1], [1, 1], [0, 0]])
    metrics = ratio_metrics(ratio, mask)
    assert metrics["ratio_effective"].value == pytest.approx(0.25)
    assert (metrics["ratio_mean"].value, metrics["ratio_max"].value) == (1.0, 4.0)


def test_bradley_terry_by_hand():
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    found = bradley_terry(chosen, rejected, centering=0.01)
    expected = [math.log(1 + math.exp(-1)) + 0.01 * 1, math.log(1 + math.exp(2)) + 0.01 * 4]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
