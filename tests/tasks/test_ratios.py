"""Ratios of two policies, and what they say about a batch."""

import pytest
import torch

from tasks._maths.ratios import importance_ratio, ratio_metrics, sequence_ratio


def test_a_ratio_never_overflows():
    old = torch.tensor([[-1000.0]])
    assert torch.isfinite(importance_ratio(torch.zeros(1, 1), old)).all()
    assert torch.isfinite(sequence_ratio(torch.zeros(1, 1), old, torch.ones(1, 1))).all()


def test_a_sequences_ratio_is_the_geometric_mean_of_its_tokens():
    logprobs = torch.tensor([[2.0, 8.0, 99.0], [5.0, 5.0, 5.0]]).log()
    mask = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert sequence_ratio(logprobs, torch.zeros(2, 3), mask).tolist() == pytest.approx([4.0, 1.0])


def test_effective_sample_fraction_of_ratios():
    """One token with all the weight is one token in four."""
    ratio, mask = torch.tensor([[4.0, 0.0], [0.0, 0.0], [9.0, 9.0]]), torch.tensor([[1.0, 1], [1, 1], [0, 0]])
    metrics = ratio_metrics(ratio, mask)
    assert metrics["ratio_effective"].value == pytest.approx(0.25)
    assert (metrics["ratio_mean"].value, metrics["ratio_max"].value) == (1.0, 4.0)
