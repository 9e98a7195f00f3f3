"""Every algorithm on policies learns, from samples, answers whose best one is known.

The first of three tokens, where 0 ends the answer, then a second one that depends on the first; a float64 softmax
policy over a table. The formulas are those of `tasks._maths`; only sampling and the optimizer are written here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from tasks._maths.advantages import (
    ADVANTAGES,
    per_component,
)
from tasks._maths.objectives import AGGREGATES, OBJECTIVES, LossInputs, LossOptions, StepRows
from tasks._maths.token_advantages import discounted_returns, gae, whiten_tokens, with_kl_in_reward
from tasks._maths.value_loss import clipped_value_loss

pytestmark = pytest.mark.slow

GROUP_SIZE, PROMPTS = 8, 16
GROUPS = np.repeat(np.arange(PROMPTS), GROUP_SIZE)
# Reward of (first, second): the best answer is (2, 1), and a greedy first step leads away from it.
ANSWERS = torch.tensor([[0.3, 0.3, 0.3], [0.5, 0.4, 0.5], [-0.5, 1.0, -0.5]], dtype=torch.float64)
PLAIN = LossOptions(clip_low=0.2, clip_high=0.28, dual_clip=None, kl_coefficient=0.0, kl_estimator="k2")


@dataclass(frozen=True)
class Sampled:
    """A batch of answers: tokens [rows 2], mask [rows 2], the contexts they were drawn in, rewards [rows]."""

    tokens: torch.Tensor
    contexts: torch.Tensor
    mask: torch.Tensor
    rewards: np.ndarray

    def lines(self, values: torch.Tensor) -> list[np.ndarray]:
        """A [rows 2] tensor as ragged rows."""
        return [v[m].numpy() for v, m in zip(values.detach(), self.mask.bool(), strict=True)]

    def padded(self, lines: list[np.ndarray]) -> torch.Tensor:
        values = torch.zeros_like(self.mask)
        values[self.mask.bool()] = torch.from_numpy(np.concatenate(lines))
        return values

    def logprobs(self, logits: torch.Tensor) -> torch.Tensor:
        chosen = logits.log_softmax(-1)[self.contexts, self.tokens]
        return chosen * self.mask


def sample(logits: torch.Tensor, generator: torch.Generator) -> Sampled:
    """Context 0 is the start, context 1 + a follows the token a."""
    first = torch.multinomial(logits[0].softmax(-1).expand(len(GROUPS), 3), 1, generator=generator)[:, 0]
    second = torch.multinomial(logits[1 + first].softmax(-1), 1, generator=generator)[:, 0]
    mask = torch.stack([torch.ones(len(GROUPS)), first != 0], dim=1).double()
    contexts = torch.stack([torch.zeros_like(first), 1 + first], dim=1)
    return Sampled(torch.stack([first, second], dim=1), contexts, mask, ANSWERS[first, second].numpy())


def per_row(name: str) -> Callable[[Sampled, torch.Tensor, torch.Tensor], torch.Tensor]:
    """One of `ADVANTAGES`, spread over the row's tokens."""

    def advantages(batch: Sampled, old: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(ADVANTAGES[name](batch.rewards, GROUPS))[:, None] * batch.mask

    return advantages


def two_rewards(batch: Sampled, old: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """GDPO: the reward, and another that likes answers of two tokens."""
    components = np.stack([batch.rewards, batch.mask[:, 1].numpy()], axis=1)
    return torch.from_numpy(per_component(components, np.array([1.0, 0.2]), GROUPS))[:, None] * batch.mask


def reinforce_plus_plus(batch: Sampled, old: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Returns per token of a reward with a small KL to the uniform policy, whitened over the batch."""
    kl = batch.lines(old + np.log(3.0))
    return batch.padded(whiten_tokens(discounted_returns(with_kl_in_reward(batch.rewards, kl, 0.01), 1.0)))


def with_critic(batch: Sampled, old: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """PPO: generalised advantages under the critic's values, whitened."""
    return batch.padded(whiten_tokens(critic_targets(batch, values)[0]))


def critic_targets(batch: Sampled, values: torch.Tensor) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rewards = with_kl_in_reward(batch.rewards, batch.lines(torch.zeros_like(batch.mask)), 0.0)
    return gae(rewards, batch.lines(values[batch.contexts]), 1.0, 0.95)


@dataclass(frozen=True)
class Algorithm:
    """A row of the table: which advantage, which loss, which denominators."""

    advantages: Callable[[Sampled, torch.Tensor, torch.Tensor], torch.Tensor]
    objective: str
    aggregate: str
    options: LossOptions = field(default=PLAIN)


GSPO_OPTIONS = LossOptions(3e-2, 4e-2, None, 0.0, "k2")
CISPO_OPTIONS = LossOptions(1.0, 5.0, None, 0.0, "k2")
ALGORITHMS = {
    "REINFORCE": Algorithm(per_row("reward"), "likelihood", "sequence_sum"),
    "RLOO": Algorithm(per_row("leave_one_out"), "likelihood", "sequence_sum"),
    "GRPO": Algorithm(per_row("group_mean_std"), "clipped", "sequence_mean"),
    "GRPO with a small KL": Algorithm(
        per_row("group_mean_std"), "clipped", "sequence_mean", LossOptions(0.2, 0.2, None, 0.01, "k3_corrected")
    ),
    "Dr. GRPO": Algorithm(per_row("group_mean"), "clipped", "constant"),
    "DAPO": Algorithm(per_row("group_mean_std"), "clipped", "token_mean"),
    "LitePPO": Algorithm(per_row("group_mean_batch_std"), "clipped", "token_mean"),
    "GSPO": Algorithm(per_row("group_mean_std"), "gspo", "sequence_mean", GSPO_OPTIONS),
    "CISPO": Algorithm(per_row("group_mean_std"), "cispo", "token_mean", CISPO_OPTIONS),
    "ScaleRL": Algorithm(per_row("group_mean_whitened"), "cispo", "prompt_mean", CISPO_OPTIONS),
    "GDPO": Algorithm(two_rewards, "clipped", "sequence_mean"),
    "RAFT": Algorithm(per_row("best_of_n"), "likelihood", "sequence_mean"),
    "RAFT++": Algorithm(per_row("positive_reward"), "clipped", "token_mean"),
    "REINFORCE++": Algorithm(reinforce_plus_plus, "clipped", "token_mean"),
    "REINFORCE++-baseline": Algorithm(per_row("group_mean_whitened"), "clipped", "token_mean"),
    "PPO": Algorithm(with_critic, "clipped", "token_mean", LossOptions(0.2, 0.2, 3.0, 0.0, "k2")),
}


def update(batch: Sampled, logits: torch.Tensor, values: torch.Tensor, algorithm: Algorithm):
    """The step's loss with the sampled policy's own log-probabilities as old ones, as a function to be called again."""
    old = batch.logprobs(logits).detach()
    advantages = algorithm.advantages(batch, old, values.detach())
    rows = StepRows(batch.mask.sum(1).long(), torch.from_numpy(GROUPS), torch.ones(len(GROUPS), dtype=torch.float64))
    denominators = AGGREGATES[algorithm.aggregate](rows, 2)
    reference = torch.full_like(old, -np.log(3.0)) if algorithm.options.kl_coefficient else None

    def loss() -> torch.Tensor:
        inputs = LossInputs(batch.logprobs(logits), old, reference, advantages, batch.mask, denominators, batch.mask)
        return OBJECTIVES[algorithm.objective](inputs, algorithm.options).loss_sum

    return loss


def learn(algorithm: Algorithm, *, steps: int = 150, epochs: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """The chance of each answer, and the critic's values per context, after training from the uniform policy."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    values = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits, values], lr=0.05)
    for _ in range(steps):
        batch = sample(logits.detach(), generator)
        loss = update(batch, logits, values, algorithm)
        old_values = values.detach()[batch.contexts]
        returns = batch.padded(critic_targets(batch, values.detach())[1])
        for _ in range(epochs):
            critic = clipped_value_loss(values[batch.contexts], old_values, returns, 0.2)
            total = loss() + (critic * batch.mask).sum() / batch.mask.sum()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    first, second = logits.detach()[0].softmax(-1), logits.detach()[1:].softmax(-1)
    return first[:, None] * second, values.detach()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_best_answer_is_found(name):
    """Chance of the best answer: 1/9 at first; short of 1 only for lack of steps, or by the small KL."""
    answers, _ = learn(ALGORITHMS[name])
    assert float(answers[2, 1]) > 0.9


def test_the_critic_of_ppo_learns_what_each_context_is_worth():
    answers, values = learn(ALGORITHMS["PPO"], steps=300)
    assert float(values[0]) == pytest.approx(float((answers * ANSWERS).sum()), abs=0.05)
    assert float(values[3]) == pytest.approx(1.0, abs=0.05)
