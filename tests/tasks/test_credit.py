"""What each algorithm makes of rewards and log-probabilities: against the papers' formulas, with a reference that
differs from the policy."""

import numpy as np
import pytest

from flows.algorithms import ALGORITHMS
from tasks._maths.advantages import ADVANTAGES
from tasks.policy_update.config import PolicyUpdateConfig
from tasks.policy_update.credit import Measured, give_credit
from tasks.policy_update.rows import TrainingRows

REWARDS = np.array([1.0, 0.2, 0.0, 0.7, 0.7, 0.4])
GROUPS = np.array([0, 0, 0, 1, 1, 1])
LENGTHS = [2, 3, 1, 2, 2, 4]
PASSED = np.array([True, True, False, True, False, True])


def random_lines(seed, scale=1.0):
    random = np.random.default_rng(seed)
    return [(-random.random(n) * scale).astype(np.float32) for n in LENGTHS]


def rows(advantage="group_mean", **changes):
    """Six rows in two groups, the advantages as the filter takes them."""
    values = {
        "rollout_ids": [str(n) for n in range(6)],
        "prompts": [np.arange(3, dtype=np.int32)] * 6,
        "responses": [np.arange(n, dtype=np.int32) for n in LENGTHS],
        "old_logprobs": random_lines(1),
        "temperatures": np.ones(6),
        "rewards": REWARDS,
        "passed": PASSED,
        "advantages": ADVANTAGES[advantage](REWARDS, GROUPS),
        "weights": np.ones(6),
        "groups": GROUPS,
        "ages": np.zeros(6, dtype=np.int64),
    }
    return TrainingRows(**(values | changes))


def credit_of(name, measured, **changes):
    algorithm = ALGORITHMS[name]
    config = PolicyUpdateConfig.model_validate(algorithm.policy_update | changes)
    return give_credit(rows(algorithm.filtering.get("advantage", "group_mean")), measured, config)


def reward_kl(beta):
    """Per-token rewards: -beta (log pi - log ref), and the reward at the last token."""
    lines = []
    for old, reference, reward in zip(random_lines(1), random_lines(2), REWARDS, strict=True):
        line = -beta * (old.astype(float) - reference.astype(float))
        line[-1] += reward
        lines.append(line)
    return lines


def assert_lines(found, expected):
    assert len(found) == len(expected)
    for line, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(line, other, rtol=1e-5, atol=1e-6)


def whitened(lines):
    flat = np.concatenate(lines)
    return [(line - flat.mean()) / (flat.std(ddof=1) + 1e-6) for line in lines]


def test_rloo_compares_rewards_less_their_kl():
    """r' = r - beta sum_t KL_t, then r' less the mean of the others' (arXiv 2402.14740, equation 9)."""
    found = credit_of("rloo", Measured(reference=random_lines(2)))
    penalised = np.array([line.sum() for line in reward_kl(0.05)])
    expected = []
    for row, n in enumerate(LENGTHS):
        others = [penalised[o] for o in range(6) if GROUPS[o] == GROUPS[row] and o != row]
        expected.append(np.full(n, penalised[row] - np.mean(others)))
    assert_lines(found.advantages, expected)
    assert_lines(found.weights, [np.ones(n) for n in LENGTHS])


def test_reinforce_pp_whitens_discounted_returns_of_penalised_tokens():
    found = credit_of("reinforce_pp", Measured(reference=random_lines(2)), gamma=0.9)
    returns = []
    for line in reward_kl(0.01):
        returns.append(np.array([sum(0.9 ** (s - t) * line[s] for s in range(t, len(line))) for t in range(len(line))]))
    assert_lines(found.advantages, whitened(returns))


def test_reinforce_pp_baseline_whitens_over_tokens():
    found = credit_of("reinforce_pp_baseline", Measured(reference=random_lines(2)))
    centred = [
        np.full(n, reward - REWARDS[group == GROUPS].mean())
        for n, reward, group in zip(LENGTHS, REWARDS, GROUPS, strict=True)
    ]
    assert_lines(found.advantages, whitened(centred))


def test_ppo_estimates_generalised_advantages_from_values():
    """delta_t = r_t + gamma V_t+1 - V_t; A_t = sum (gamma lambda)^k delta_t+k; returns = A + V before whitening."""
    values = random_lines(3)
    found = credit_of("ppo", Measured(reference=random_lines(2), values=values), gamma=0.97)
    advantages, returns = [], []
    for line, value in zip(reward_kl(0.02), values, strict=True):
        following = np.append(value[1:], 0.0)
        delta = line + 0.97 * following - value
        a = [sum((0.97 * 0.95) ** (s - t) * delta[s] for s in range(t, len(line))) for t in range(len(line))]
        advantages.append(np.array(a))
        returns.append(np.array(a) + value)
    assert_lines(found.advantages, whitened(advantages))
    assert_lines(found.returns, returns)


def calibrated():
    means = np.array([REWARDS[group == GROUPS].mean() for group in GROUPS])
    return 1 / (1 + np.exp(-(REWARDS - means)))


def row_kl():
    return np.array([(a.astype(float) - b).sum() for a, b in zip(random_lines(1), random_lines(2), strict=True)])


def test_crpg_counts_what_passes_and_fades_with_divergence():
    found = credit_of("crpg", Measured(reference=random_lines(2)), cgpo_max_kl=4.0)
    regularised = np.maximum(1 - row_kl() / 4.0, 0) * calibrated() * PASSED
    assert_lines(
        found.advantages, [np.full(n, a) for n, a in zip(LENGTHS, regularised - regularised.mean(), strict=True)]
    )


def test_crraft_takes_the_best_that_passes_near_the_reference():
    bound = float(np.sort(row_kl())[3])
    found = credit_of("crraft", Measured(reference=random_lines(2)), cgpo_max_kl=bound)
    expected = np.zeros(6)
    for group in (0, 1):
        fit = [row for row in range(6) if GROUPS[row] == group and PASSED[row] and row_kl()[row] <= bound]
        if fit:
            best = max(fit, key=lambda row: REWARDS[row])
            expected[best] = calibrated()[best]
    assert expected.any()
    assert_lines(found.advantages, [np.full(n, a) for n, a in zip(LENGTHS, expected, strict=True)])


def test_positives_only_leaves_no_negative_advantage():
    found, grpo = credit_of("grpo", Measured(), positives_only=True), rows("group_mean_std").advantages
    assert_lines(found.advantages, [np.full(n, max(a, 0)) for n, a in zip(LENGTHS, grpo, strict=True)])


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_corrections_weigh_the_trainer_against_the_engine(level):
    trainer = random_lines(4)
    correction = {"kind": "mask", "low": 0.6, "high": 1.6, "level": level}
    found = credit_of("dr_grpo", Measured(trainer=trainer), correction=correction)
    expected = []
    for new, engine in zip(trainer, random_lines(1), strict=True):
        ratio = np.exp(new.astype(float) - engine)
        ratio = np.full(len(new), ratio.prod()) if level == "sequence" else ratio
        expected.append(np.where((ratio >= 0.6) & (ratio <= 1.6), ratio, 0.0))
    assert_lines(found.weights, expected)
    assert_lines(found.old, trainer)


@pytest.mark.parametrize("name", ["dr_grpo", "reinforce_pp", "crpg"])
def test_bad_answers_that_the_policy_left_are_masked_by_the_advantage_that_trains(name):
    engine = random_lines(1)
    trainer = [line - 0.6 if row % 2 else line for row, line in enumerate(engine)]
    measured = Measured(trainer=trainer, reference=engine)
    found = credit_of(name, measured, correction={"negatives_within": 0.5})
    for row, (weights, advantages) in enumerate(zip(found.weights, found.advantages, strict=True)):
        masked = row % 2 == 1 and advantages.mean() < 0
        assert (weights == 0).all() == masked


def test_a_preset_says_what_its_paper_says():
    """The numbers of methods.md, section 4, so that a slip in the table shows."""
    clips = {
        name: (a.policy_update.get("clip_low"), a.policy_update.get("clip_high")) for name, a in ALGORITHMS.items()
    }
    assert clips["dapo"] == (0.2, 0.28)
    assert clips["gspo"] == (3e-4, 4e-4)
    assert 1 - clips["cispo"][0] == 0
    assert 1 + clips["cispo"][1] == 5
    assert ALGORITHMS["ppo"].policy_update["dual_clip"] == 3
    assert ALGORITHMS["gspo"].policy_update["old_logprobs"] == "trainer"
    aggregates = {name: a.policy_update.get("aggregate") for name, a in ALGORITHMS.items()}
    assert aggregates | {"grpo": "sequence_mean", "dapo": "token_mean", "dr_grpo": "constant"} == aggregates
    assert aggregates | {"rloo": "sequence_sum", "gspo": "sequence_mean", "raft": "token_mean"} == aggregates
    advantages = {name: a.filtering.get("advantage", "group_mean") for name, a in ALGORITHMS.items()}
    assert advantages | {"grpo": "group_mean_std", "dr_grpo": "group_mean", "rloo": "leave_one_out"} == advantages
    assert ALGORITHMS["iterated_dpo"].policy_update["pairs"] == {"source": "best_worst", "beta": 0.1}
    assert ALGORITHMS["codpo"].policy_update["pairs"]["sft_weight"] == 1.0
