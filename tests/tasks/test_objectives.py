"""Objectives: loss and gradient against each paper's formula, and independence of the cutting into micro-batches.

The formulas are written a second time below, row by row in float64 with autograd, as the papers print them.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks._maths.objectives import AGGREGATES, OBJECTIVES, LossInputs, LossOptions, StepRows

OPTIONS = LossOptions(clip_low=0.2, clip_high=0.28, dual_clip=None, kl_coefficient=0.0, kl_estimator="k2")
few = settings(deadline=None, max_examples=30)
shapes = st.tuples(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), min_size=1, max_size=6), st.integers(0, 2**31)
)


def batch(shape, *, per_row=False):
    """Random float64 inputs for rows of (length, group), with garbage in the padding; lengths and groups."""
    rows, seed = shape
    generator = torch.Generator().manual_seed(seed)
    lengths, groups = torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows])
    size = (len(rows), int(lengths.max()) + 2)

    def normal():
        return torch.randn(size, dtype=torch.float64, generator=generator)

    advantages = normal()[:, :1].expand(size) if per_row else normal()
    inputs = LossInputs(
        logprobs=(-2 + normal()).requires_grad_(),
        old_logprobs=-2 + normal(),
        ref_logprobs=-2 + normal(),
        advantages=advantages,
        weights=normal().abs(),
        denominators=torch.ones(len(rows), dtype=torch.float64),
        mask=(torch.arange(size[1]) < lengths[:, None]).double(),
    )
    return inputs, lengths, groups


def paper_clipped(row, options):
    """PPO, equation 7, with the two bounds of DAPO and the dual clip of arXiv 1912.09729, token by token."""
    losses = []
    for logp, old, a in zip(row.logprobs, row.old_logprobs, row.advantages.tolist(), strict=True):
        losses.append(-paper_surrogate(torch.exp(logp - old), a, options))
    return losses


def paper_surrogate(ratio, a, options):
    bounded = torch.clamp(ratio, 1 - options.clip_low, 1 + options.clip_high)
    objective = torch.min(ratio * a, bounded * a)
    if options.dual_clip is not None and a < 0:
        objective = torch.max(objective, torch.tensor(options.dual_clip * a, dtype=objective.dtype))
    return objective


def paper_gspo(row, options):
    """arXiv 2507.18071: s_i with its own gradient, the row's objective spread evenly over its tokens."""
    s = torch.exp(sum(row.logprobs - row.old_logprobs) / len(row.logprobs))
    return [-paper_surrogate(s, a, options) for a in row.advantages.tolist()]


def paper_cispo(row, options):
    low, high = 1 - options.clip_low, 1 + options.clip_high
    ratios = np.exp(row.logprobs.detach().numpy() - row.old_logprobs.numpy()).clip(low, high)
    return [-r * a * logp for r, a, logp in zip(ratios, row.advantages.tolist(), row.logprobs, strict=True)]


def paper_likelihood(row, options):
    return [-a * logp for a, logp in zip(row.advantages.tolist(), row.logprobs, strict=True)]


PAPER_LOSSES = {"clipped": paper_clipped, "gspo": paper_gspo, "cispo": paper_cispo, "likelihood": paper_likelihood}


def paper_scale(name, lengths, groups, max_tokens):
    """Each row's factor, written as the nested means of the papers."""
    rows = list(zip(lengths, groups, strict=True))
    in_group = {g: sum(n for n, other in rows if other == g) for g in groups}
    return {
        "constant": lambda n, g: 1 / len(rows) / max_tokens,
        "sequence_mean": lambda n, g: 1 / len(rows) * (1 / n if n else 0),
        "token_mean": lambda n, g: 1 / sum(lengths) if sum(lengths) else 0,
        "sequence_sum": lambda n, g: 1 / len(rows),
        "prompt_mean": lambda n, g: 1 / len(in_group) * (1 / in_group[g] if in_group[g] else 0),
    }[name]


def paper_loss(objective, aggregate, inputs, lengths, groups, options, max_tokens=9):
    lengths, groups = lengths.tolist(), groups.tolist()
    scale, total = paper_scale(aggregate, lengths, groups, max_tokens), torch.zeros((), dtype=torch.float64)
    for index, (length, group) in enumerate(zip(lengths, groups, strict=True)):
        columns = ("logprobs", "old_logprobs", "ref_logprobs", "advantages", "weights")
        row = replace(inputs, **{name: getattr(inputs, name)[index, :length] for name in columns})
        for loss, logp, ref, weight in zip(
            PAPER_LOSSES[objective](row, options) if length else [],
            row.logprobs,
            row.ref_logprobs,
            row.weights,
            strict=True,
        ):
            penalty = options.kl_coefficient * 0.5 * (logp - ref) ** 2
            total = total + scale(length, group) * weight * (loss + penalty)
    return total


def plain(lengths, groups):
    """Rows that all weigh 1."""
    return StepRows(lengths, groups, torch.ones(len(lengths), dtype=torch.float64))


def check(objective, aggregate, shape, options):
    """GSPO's gradient is only defined for one advantage and one weight per row: the sequence has one ratio."""
    inputs, lengths, groups = batch(shape, per_row=objective == "gspo")
    if objective == "gspo":
        inputs = replace(inputs, weights=inputs.weights[:, :1].expand_as(inputs.weights))
    expected = paper_loss(objective, aggregate, inputs, lengths, groups, options)
    inputs = replace(inputs, denominators=AGGREGATES[aggregate](plain(lengths, groups), 9))
    found = OBJECTIVES[objective](inputs, options)
    torch.testing.assert_close(found.loss_sum, expected)
    if expected.requires_grad:
        expected_gradient = torch.autograd.grad(expected, inputs.logprobs)[0]
        gradient = torch.autograd.grad(found.loss_sum, inputs.logprobs)[0]
        torch.testing.assert_close(gradient, expected_gradient)
    assert found.metrics["tokens"].value == float(lengths.sum())
    assert found.metrics["loss"].value == pytest.approx(float(expected.detach()), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@few
@given(shape=shapes, dual=st.sampled_from([None, 1.5]), kl=st.sampled_from([0.0, 0.3]))
def test_loss_and_gradient_are_the_papers(objective, aggregate, shape, dual, kl):
    check(objective, aggregate, shape, replace(OPTIONS, dual_clip=dual, kl_coefficient=kl))


@pytest.mark.parametrize("aggregate", AGGREGATES)
@few
@given(shape=shapes, copies=st.lists(st.integers(1, 4), min_size=12, max_size=12))
def test_a_row_of_weight_w_gives_what_w_equal_rows_would(aggregate, shape, copies):
    inputs, lengths, groups = batch(shape)
    times = torch.tensor(copies[: len(lengths)] + [1] * max(0, len(lengths) - len(copies)))

    def loss(rows, weights):
        of_rows = {name: getattr(inputs, name)[rows] for name in ("logprobs", "old_logprobs", "advantages", "mask")}
        step = StepRows(lengths[rows], groups[rows], weights)
        denominators = AGGREGATES[aggregate](step, 9)
        per_token = weights[:, None].expand_as(of_rows["mask"])
        given = LossInputs(**of_rows, ref_logprobs=None, weights=per_token, denominators=denominators)
        return OBJECTIVES["clipped"](given, OPTIONS).loss_sum

    every = torch.arange(len(lengths))
    repeated = every.repeat_interleave(times)
    merged = loss(every, times.double())
    torch.testing.assert_close(merged, loss(repeated, torch.ones(len(repeated), dtype=torch.float64)))


@pytest.mark.parametrize(
    ("ratio", "advantage", "dual", "loss", "gradient_flows"),
    [
        (1.0, 1.0, None, -1.0, True),
        (1.5, 1.0, None, -1.28, False),
        (0.5, 1.0, None, -0.5, True),
        (1.5, -1.0, None, 1.5, True),
        (0.5, -1.0, None, 0.8, False),
        (5.0, -1.0, None, 5.0, True),
        (5.0, -1.0, 3.0, 3.0, False),
        (5.0, -2.0, 3.0, 6.0, False),
        (2.9, -1.0, 3.0, 2.9, True),
        (0.5, -1.0, 3.0, 0.8, False),
        (5.0, 1.0, 3.0, -1.28, False),
    ],
)
@pytest.mark.parametrize("objective", ["clipped", "gspo"])
def test_clipping_of_one_token(objective, ratio, advantage, dual, loss, gradient_flows):
    """Clipped only where the update would go further, and by the dual clip where the loss would explode."""
    found, gradient = one_token(objective, ratio, advantage, replace(OPTIONS, dual_clip=dual))
    assert float(found.loss_sum.detach()) == pytest.approx(loss, rel=1e-6)
    assert (gradient != 0) == gradient_flows
    clipped = sum(found.metrics[n].value for n in found.metrics if n.startswith("clipped_"))
    assert clipped == (0.0 if gradient_flows else 1.0)


def one_token(objective, ratio, advantage, options):
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    ones = torch.ones(1, 1)
    inputs = LossInputs(logprobs, torch.zeros(1, 1), None, advantage * ones, ones, torch.ones(1), ones)
    found = OBJECTIVES[objective](inputs, options)
    return found, float(torch.autograd.grad(found.loss_sum, logprobs, retain_graph=True)[0])


@pytest.mark.parametrize(("ratio", "factor"), [(1.0, 1.0), (9.0, 6.0), (0.01, 0.01)])
def test_cispo_limits_the_weight_and_keeps_the_gradient(ratio, factor):
    """ScaleRL's setting: no lower bound (clip_low 1), upper bound 1 + 5."""
    found, gradient = one_token("cispo", ratio, 2.0, replace(OPTIONS, clip_low=1.0, clip_high=5.0))
    assert gradient == pytest.approx(-2.0 * factor)
    assert found.metrics["clipped_high"].value == float(ratio > 6)
    assert found.metrics["clipped_low"].value == 0.0


@few
@given(shape=shapes)
def test_gspo_with_advantages_per_token_scales_each_tokens_gradient_by_the_sequences_ratio(shape):
    """GSPO-token: gradient of token t is -s_i A_t w_t / denominator, wherever nothing is clipped."""
    inputs, lengths, groups = batch(shape)
    inputs = replace(inputs, denominators=AGGREGATES["token_mean"](plain(lengths, groups), 9), ref_logprobs=None)
    wide = replace(OPTIONS, clip_low=1.0, clip_high=1e9)
    gradient = torch.autograd.grad(OBJECTIVES["gspo"](inputs, wide).loss_sum, inputs.logprobs)[0].numpy()
    log_ratio = (inputs.logprobs.detach() - inputs.old_logprobs).numpy()
    for row, n in enumerate(lengths.tolist()):
        s = np.exp(log_ratio[row, :n].mean()) if n else 0.0
        expected = -s * inputs.advantages[row, :n] * inputs.weights[row, :n] / max(int(lengths.sum()), 1)
        np.testing.assert_allclose(gradient[row, :n], expected, rtol=1e-9)


def test_on_policy_every_objective_has_the_policy_gradient_in_common():
    inputs, _, _ = batch(([(4, 0), (2, 1)], 5))
    inputs = replace(inputs, old_logprobs=inputs.logprobs.detach(), ref_logprobs=None)
    expected = -(inputs.advantages * inputs.weights * inputs.mask)
    for loss in OBJECTIVES.values():
        gradient = torch.autograd.grad(loss(inputs, OPTIONS).loss_sum, inputs.logprobs)[0]
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [300, 300, 300]),
        ("sequence_mean", [6, 60, 3]),
        ("token_mean", [23, 23, 23]),
        ("sequence_sum", [3, 3, 3]),
        ("prompt_mean", [44, 44, 2]),
    ],
)
def test_denominators_of_three_rows(name, expected):
    """Lengths 2, 20 and 1, the first two of one prompt, 100 tokens at most."""
    found = AGGREGATES[name](plain(torch.tensor([2, 20, 1]), torch.tensor([7, 7, 3])), 100)
    assert found.tolist() == expected


def test_only_sequence_mean_gives_a_short_answers_tokens_more_weight_than_a_long_ones():
    """The length bias that Dr. GRPO removes: both answers belong to one prompt."""
    ratio = {n: f(plain(torch.tensor([2, 20]), torch.tensor([0, 0])), 30) for n, f in AGGREGATES.items()}
    assert {n for n, d in ratio.items() if d[0] != d[1]} == {"sequence_mean"}


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_cutting_into_micro_batches_changes_nothing(objective, aggregate):
    inputs, lengths, groups = batch(([(6, 0), (1, 1), (4, 0), (3, 2), (5, 1)], 3))
    inputs = replace(inputs, denominators=AGGREGATES[aggregate](plain(lengths, groups), 16))
    options = LossOptions(0.2, 0.28, dual_clip=2.0, kl_coefficient=0.1, kl_estimator="k3_corrected")
    whole = OBJECTIVES[objective](inputs, options)
    expected = torch.autograd.grad(whole.loss_sum, inputs.logprobs)[0]
    cut = inputs.logprobs.detach().clone().requires_grad_()
    parts = []
    for rows in ([3, 0], [4], [1, 2]):
        columns = {name: value[rows] for name, value in vars(replace(inputs, logprobs=cut)).items()}
        parts.append(OBJECTIVES[objective](LossInputs(**columns), options))
        parts[-1].loss_sum.backward()
    torch.testing.assert_close(cut.grad, expected)
    for metric, value in whole.metrics.items():
        merged = parts[0].metrics[metric].merge(parts[1].metrics[metric]).merge(parts[2].metrics[metric])
        assert merged.value == pytest.approx(value.value, rel=1e-9), metric


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_padding_and_weight_zero_add_nothing(objective):
    inputs, _, _ = batch(([(6, 0), (1, 1), (4, 0)], 4))
    weights = inputs.weights.clone()
    weights[2], weights[0, 3] = 0.0, 0.0
    found = OBJECTIVES[objective](replace(inputs, weights=weights), replace(OPTIONS, clip_low=1.0, clip_high=1e9))
    gradient = torch.autograd.grad(found.loss_sum, inputs.logprobs)[0]
    assert torch.equal(gradient != 0, (inputs.mask * weights) > 0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_kl_to_the_reference_is_added_per_token(objective):
    logprobs, reference, ones = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -2.0]]), torch.ones(1, 2)
    options = replace(OPTIONS, kl_coefficient=0.5)
    inputs = LossInputs(logprobs, logprobs, reference, 0 * ones, ones, torch.ones(1), ones)
    found = OBJECTIVES[objective](inputs, options)
    assert float(found.loss_sum) == pytest.approx(0.5 * 0.5 * 0.5**2)
    assert found.metrics["kl_reference"].value == pytest.approx(0.0625)
    assert "kl_reference" not in OBJECTIVES[objective](replace(inputs, ref_logprobs=None), options).metrics
