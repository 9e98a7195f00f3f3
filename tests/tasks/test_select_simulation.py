"""The simulated campaign, small: choosing prompts by what is known gives more informative groups for the rollouts."""

import pytest
from select_simulation import STRATEGIES, World, simulate

WORLD = World(prompts=400, iterations=25)
SEEDS = range(3)


@pytest.fixture(scope="module")
def rates():
    """Informative groups per rollout, over the seeds."""
    named = ("uniform", "variance", "greso", "thompson", "thompson, exploring, retiring")
    runs = {
        name: [simulate(WORLD, seed, prompts_per_iteration=32, **STRATEGIES[name]) for seed in SEEDS] for name in named
    }
    return {name: sum(run.per_rollout for run in found) / len(found) for name, found in runs.items()}


@pytest.mark.parametrize("name", ["variance", "greso", "thompson", "thompson, exploring, retiring"])
def test_a_strategy_beats_uniform(rates, name):
    assert rates[name] > 1.1 * rates["uniform"], rates


def test_every_campaign_spends_the_same(rates):
    run = simulate(WORLD._replace(iterations=3), 0, prompts_per_iteration=32, **STRATEGIES["thompson, informative n"])
    assert (run.rollouts, run.groups) == (3 * 32 * 8, 3 * 32)
