"""Every algorithm learns the known optimum of a bandit of three arms, and the wrong ones fail as known.

A float64 softmax policy; where a gradient is said to be exact, every arm is a row, weighed with its chance. The
formulas are those of `tasks._maths`; only sampling and the optimizer are written here.
"""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tasks._maths.advantages import (
    ADVANTAGES,
    best_against_worst,
    calibrated_reward,
    codpo_pairs,
    crpg,
    crraft,
)
from tasks._maths.corrections import importance_weights
from tasks._maths.kl import KL_ESTIMATORS
from tasks._maths.objectives import AGGREGATES, OBJECTIVES, LossInputs, LossOptions, StepRows
from tasks._maths.preference_losses import PREFERENCE_LOSSES, kto

pytestmark = pytest.mark.slow

GROUPS = np.repeat(np.arange(16), 8)
PLAIN = LossOptions(clip_low=0.2, clip_high=0.28, dual_clip=None, kl_coefficient=0.0, kl_estimator="k2")
REWARDS = np.array([1.0, 0.6, 0.0])
REFERENCE = np.array([0.2, 0.5, 0.3])
BETA = 0.5


def one_token_each(groups: np.ndarray) -> StepRows:
    """Rows of one token that all weigh 1."""
    ones = torch.ones(len(groups), dtype=torch.float64)
    return StepRows(ones.long(), torch.from_numpy(groups), ones)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


REVERSE_OPTIMUM = softmax(np.log(REFERENCE) + REWARDS / BETA)


def forward_optimum() -> np.ndarray:
    """argmax E r - beta KL(ref || pi): pi_i = beta ref_i / (beta + m - r_i), m the mean reward, found by bisection."""
    low, high = REWARDS.max() - BETA + 1e-9, REWARDS.max()
    for _ in range(200):
        middle = (low + high) / 2
        policy = BETA * REFERENCE / (BETA + middle - REWARDS)
        low, high = (middle, high) if policy.sum() > 1 else (low, middle)
    return policy


def every_arm_weighed(
    estimator: str, *, in_loss: bool, objective: str = "likelihood", behaviour: np.ndarray | None = None
) -> np.ndarray:
    """Where gradient descent ends with exact expectations: one row per arm, weighed with the sampler's chance of it.

    `behaviour` samples instead of the policy, with full importance weights.
    """
    logits = torch.tensor(np.log(REFERENCE), requires_grad=True)
    reference, ones = torch.tensor(np.log(REFERENCE))[:, None], torch.ones(3, 1, dtype=torch.float64)
    options = LossOptions(0.2, 0.2, None, BETA if in_loss else 0.0, estimator)
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(1500):
        logprobs = logits.log_softmax(0)[:, None]
        old = logprobs.detach()
        sampler = old[:, 0].exp().numpy() if behaviour is None else behaviour
        corrections = importance_weights(
            list(old.numpy()), list(np.log(sampler)[:, None]), kind="full", level="sequence", low=0.0, high=1.0
        )
        weights = torch.from_numpy(np.stack(corrections) * sampler[:, None])
        rewards = ADVANTAGES["reward"](REWARDS, np.zeros(3, dtype=int))[:, None]
        if not in_loss:
            rewards = rewards - BETA * KL_ESTIMATORS[estimator](old, reference, old).numpy()
        inputs = LossInputs(logprobs, old, reference, torch.from_numpy(rewards), weights, ones[:, 0], ones)
        optimizer.zero_grad()
        OBJECTIVES[objective](inputs, options).loss_sum.backward()
        optimizer.step()
    return logits.detach().softmax(0).numpy()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("estimator", ["k2", "k3_corrected"])
def test_kl_in_the_loss_leads_to_the_optimum_of_the_reverse_kl(estimator, objective):
    """pi* = ref exp(r / beta) / Z, for every objective: on-policy they have one gradient."""
    found = every_arm_weighed(estimator, in_loss=True, objective=objective)
    np.testing.assert_allclose(found, REVERSE_OPTIMUM, atol=1e-6)


def test_k1_in_the_reward_leads_to_the_optimum_of_the_reverse_kl():
    np.testing.assert_allclose(every_arm_weighed("k1", in_loss=False), REVERSE_OPTIMUM, atol=1e-6)


def test_another_policys_samples_lead_to_the_same_optimum_with_full_weights():
    behaviour = np.array([0.1, 0.2, 0.7])
    np.testing.assert_allclose(every_arm_weighed("k1", in_loss=False, behaviour=behaviour), REVERSE_OPTIMUM, atol=1e-6)


def test_k3_in_the_loss_leads_to_the_optimum_of_the_forward_kl_instead():
    expected = forward_optimum()
    np.testing.assert_allclose(every_arm_weighed("k3", in_loss=True), expected, atol=1e-6)
    assert np.abs(expected - REVERSE_OPTIMUM).max() > 0.05


def test_k1_in_the_loss_is_no_penalty():
    """The policy goes to the best arm as if there were no reference."""
    assert every_arm_weighed("k1", in_loss=True)[0] > 0.99


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_in_the_reward_lead_elsewhere(estimator):
    found = every_arm_weighed(estimator, in_loss=False)
    assert np.abs(found - REVERSE_OPTIMUM).max() > 0.03


def test_sampled_rloo_with_kl_in_the_loss_reaches_the_regularised_optimum():
    """The mean of the last half of the policies, as samples are noisy: 64 groups of 8 a step."""
    generator = torch.Generator().manual_seed(0)
    groups = np.repeat(np.arange(64), 8)
    logits = torch.tensor(np.log(REFERENCE), requires_grad=True)
    options = LossOptions(0.2, 0.2, None, BETA, "k2")
    optimizer, policies = torch.optim.SGD([logits], lr=0.5), []
    for _ in range(400):
        arms = torch.multinomial(logits.detach().softmax(0), len(groups), replacement=True, generator=generator)
        logprobs, ones = logits.log_softmax(0)[arms][:, None], torch.ones(len(arms), 1, dtype=torch.float64)
        advantages = torch.from_numpy(ADVANTAGES["leave_one_out"](REWARDS[arms], groups))[:, None]
        reference = torch.from_numpy(np.log(REFERENCE))[arms][:, None]
        denominators = AGGREGATES["sequence_sum"](one_token_each(groups), 1)
        inputs = LossInputs(logprobs, logprobs.detach(), reference, advantages, ones, denominators, ones)
        optimizer.zero_grad()
        OBJECTIVES["clipped"](inputs, options).loss_sum.backward()
        optimizer.step()
        policies.append(logits.detach().softmax(0).numpy())
    np.testing.assert_allclose(np.mean(policies[200:], axis=0), REVERSE_OPTIMUM, atol=0.02)


def preferred(swapped: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every ordered pair of arms and the chance that it is stated: Bradley-Terry, labels swapped with a chance."""
    pairs = torch.tensor(list(itertools.permutations(range(3), 2)))
    rewards = torch.from_numpy(REWARDS)
    chance = torch.sigmoid(rewards[pairs[:, 0]] - rewards[pairs[:, 1]])
    return pairs[:, 0], pairs[:, 1], (1 - swapped) * chance + swapped * (1 - chance)


def fit_preferences(name: str, *, swapped: float = 0.0, epsilon: float = 0.0) -> np.ndarray:
    logits = torch.tensor(np.log(REFERENCE), requires_grad=True)
    chosen, rejected, chance = preferred(swapped)
    optimizer = torch.optim.SGD([logits], lr=0.3)
    for _ in range(2000):
        ratio = logits.log_softmax(0) - torch.from_numpy(np.log(REFERENCE))
        optimizer.zero_grad()
        (chance * PREFERENCE_LOSSES[name](ratio[chosen], ratio[rejected], BETA, epsilon)).sum().backward()
        optimizer.step()
    return logits.detach().softmax(0).numpy()


def test_dpo_fits_the_optimum_of_the_reward_that_its_pairs_come_from():
    """arXiv 2305.18290: with Bradley-Terry pairs the minimum is ref exp(r / beta) / Z."""
    np.testing.assert_allclose(fit_preferences("dpo"), REVERSE_OPTIMUM, atol=1e-6)


def test_ipo_fits_the_optimum_of_the_chance_to_be_preferred():
    """arXiv 2310.12036: ref exp(P(y beats a uniform other) / beta) / Z."""
    chance = 1 / (1 + np.exp(REWARDS[None] - REWARDS[:, None]))
    expected = softmax(np.log(REFERENCE) + chance.mean(axis=1) / BETA)
    np.testing.assert_allclose(fit_preferences("ipo"), expected, atol=1e-6)


def test_robust_dpo_sees_through_swapped_labels_and_dpo_does_not():
    np.testing.assert_allclose(fit_preferences("robust_dpo", swapped=0.2, epsilon=0.2), REVERSE_OPTIMUM, atol=1e-6)
    assert np.abs(fit_preferences("dpo", swapped=0.2) - REVERSE_OPTIMUM).max() > 0.05


CHEATING = np.array([2.0, 1.0, 0.0])
HONEST = np.array([False, True, True])
Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def learn_bandit(step: Step, *, steps: int = 300, lr: float = 0.05) -> np.ndarray:
    """The mean policy of the last third: `step` gets the arms of a batch and every arm's log pi - log uniform."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer, policies = torch.optim.Adam([logits], lr=lr), []
    for _ in range(steps):
        arms = torch.multinomial(logits.detach().softmax(0), len(GROUPS), replacement=True, generator=generator)
        optimizer.zero_grad()
        step(arms, logits.log_softmax(0) + np.log(3.0)).backward()
        optimizer.step()
        policies.append(logits.detach().softmax(0).numpy())
    return np.mean(policies[-steps // 3 :], axis=0)


def preference_step(name: str, *, judged: bool) -> Step:
    def step(arms: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
        rewards = CHEATING[arms]
        pairs = codpo_pairs(rewards, HONEST[arms], GROUPS) if judged else best_against_worst(rewards, GROUPS)
        if not pairs:
            return 0.0 * ratio.sum()
        chosen, rejected = torch.tensor(pairs).T
        return PREFERENCE_LOSSES[name](ratio[arms[chosen]], ratio[arms[rejected]], 0.1, 0.1).mean()

    return step


def kto_step(arms: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    """Better than its group's mean is desirable; z0 is the KL, as mismatched answers don't exist with one prompt."""
    desirable = torch.from_numpy(ADVANTAGES["group_mean"](CHEATING[arms], GROUPS) > 0)
    z0 = (ratio.exp() / 3 * ratio).sum()
    return kto(ratio[arms], desirable, z0, 0.1, 1.0, 1.0).mean()


def cgpo_step(kind: str, kl_max: float) -> Step:
    def step(arms: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
        calibrated = calibrated_reward(CHEATING[arms], np.ones(len(arms)))
        kl = ratio.detach()[arms].numpy()
        if kind == "crpg":
            advantages = crpg(calibrated, HONEST[arms], kl, kl_max)
        else:
            advantages = crraft(calibrated, HONEST[arms], kl, kl_max, GROUPS)
        logprobs, ones = (ratio[arms] - np.log(3.0))[:, None], torch.ones(len(arms), 1, dtype=torch.float64)
        denominators = AGGREGATES["sequence_sum"](one_token_each(GROUPS), 1)
        inputs = LossInputs(
            logprobs, logprobs.detach(), None, torch.from_numpy(advantages)[:, None], ones, denominators, ones
        )
        return OBJECTIVES["likelihood"](inputs, PLAIN).loss_sum

    return step


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_pairs_of_the_best_and_the_worst_sample_lead_to_the_best_arm(name):
    assert learn_bandit(preference_step(name, judged=False))[0] > 0.9


def test_kto_leads_to_the_best_arm():
    assert learn_bandit(kto_step)[0] > 0.9


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(preference_step("dpo", judged=True), id="CODPO"),
        pytest.param(cgpo_step("crpg", 20.0), id="CRPG"),
        pytest.param(cgpo_step("crraft", 20.0), id="CRRAFT"),
    ],
)
def test_cgpo_leads_to_the_best_arm_that_its_judges_pass(step):
    """The arm of the highest reward fails: a cheat of the reward model."""
    assert learn_bandit(step)[1] > 0.9


def test_crpg_stops_where_the_room_left_by_the_kl_makes_both_honest_arms_equal():
    """kl_max = 2: pi_0 = 0 and (1 - log(3 pi_1) / 2) R_1 = (1 - log(3 pi_2) / 2) R_2, solved by bisection."""
    best, other = 1 / (1 + np.exp(0.0)), 1 / (1 + np.exp(1.0))
    low, high = 0.34, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        ahead = (1 - np.log(3 * middle) / 2) * best > (1 - np.log(3 * (1 - middle)) / 2) * other
        low, high = (middle, high) if ahead else (low, middle)
    assert learn_bandit(cgpo_step("crpg", 2.0), steps=600)[1] == pytest.approx(low, abs=0.03)


def test_crraft_leaves_answers_alone_that_are_too_far_from_the_reference():
    """log(3 pi_1) > kl_max = 0.5 excludes the arm: it stays near e^0.5 / 3 = 0.55 instead of going to 1."""
    assert learn_bandit(cgpo_step("crraft", 0.5))[1] < 0.7


def test_a_baseline_from_the_survivors_of_filtering_is_biased_in_samples_too():
    """T6 with 40,000 groups of 8 at p = 0.1: 0.176 among survivors, 0.1 among all; within 5 standard errors."""
    rewards = (np.random.default_rng(0).random((40_000, 8)) < 0.1).astype(float)
    groups = np.repeat(np.arange(len(rewards)), 8)
    advantages = ADVANTAGES["group_mean"](rewards.ravel(), groups).reshape(rewards.shape)
    baseline, survives = (rewards - advantages)[:, 0], (advantages != 0).any(axis=1)
    expected = (0.1 - 0.1**8) / (1 - 0.1**8 - 0.9**8)
    error = baseline[survives].std() / np.sqrt(survives.sum())
    assert baseline[survives].mean() == pytest.approx(expected, abs=5 * error)
    assert expected - 0.1 > 50 * error
    assert baseline.mean() == pytest.approx(0.1, abs=5 * baseline.std() / np.sqrt(len(baseline)))
