"""A campaign without a model: prompts with known pass rates that drift, drawn by the real `select` and remembered by
the real history. How many groups of each strategy are informative, for the same rollouts?

    python tests/benchmarks/select_simulation.py --prompts 2000 --iterations 60 --seeds 3
"""

import argparse
import statistics
import time
from typing import NamedTuple

import numpy as np
import polars as pl

from tasks.select.config import SelectConfig
from tasks.select.draw import draw_prompts, starting_rates
from tasks.select.history_config import OutcomesConfig
from tasks.select.outcomes import adapted_rates, after_outcomes
from tasks.select.strategy_config import GresoConfig

EXPLORING = {"exploration_share": 0.1}
RETIRING = {"retire_from": 0.9, "rehearsal_share": 0.05}
INFORMATIVE = {"allocation": {"name": "informative", "min_samples": 4, "max_samples": 24}}
STRATEGIES: dict[str, dict] = {
    "uniform": {},
    "uniform, retiring": RETIRING,
    "uniform, informative n": INFORMATIVE,
    "variance": {"strategy": "variance"},
    "band": {"strategy": "band"},
    "greso": {"strategy": "greso"},
    "thompson": {"strategy": "thompson"},
    "thompson, exploring, retiring": {"strategy": "thompson", **EXPLORING, **RETIRING},
    "thompson, informative n": {"strategy": "thompson", **INFORMATIVE},
}


class World(NamedTuple):
    """A pool, and how its pass rates move. Logits are natural."""

    prompts: int = 2000
    iterations: int = 60
    impossible: float = 0.25  # share that never passes
    solved: float = 0.2  # share that passes 99 times in 100
    hardest: float = -4.0  # the others' logits are even between the two
    easiest: float = 2.0
    by_training: float = 0.5  # what an informative group adds to its prompt's logit
    by_others: float = 0.01  # what an iteration's training adds to every prompt that isn't impossible


class Campaign(NamedTuple):
    """What came of it, over all iterations."""

    rollouts: int
    groups: int
    informative: int
    expected: float
    touched: float
    pass_rate: float

    @property
    def per_rollout(self) -> float:
        """Informative groups per rollout."""
        return self.informative / self.rollouts


def simulate(world: World, seed: int, **select) -> Campaign:
    """Run a campaign under a `select` section. The world's luck and the draws follow from the seed."""
    config = SelectConfig.model_validate({"prompts_per_iteration": 64, "samples_per_prompt": 8} | select)
    settings = OutcomesConfig(history=config.history, grader="verifier", grader_key="key", reward_key="key")
    luck = np.random.default_rng(seed)
    logits, impossible = _pool(world, luck)
    prompts = pl.DataFrame({"prompt_id": [f"p{place:07d}" for place in range(world.prompts)], "split": "train"})
    history, rates = None, starting_rates(config)
    groups = informative = rollouts = 0
    expected = []
    for iteration in range(1, world.iterations + 1):
        found = draw_prompts(prompts, history, config, iteration, seed, rates)
        places = found.drawn["prompt_id"].str.slice(1).cast(pl.Int64).to_numpy()
        samples = found.drawn["samples"].to_numpy()
        passed = luck.binomial(samples, np.where(impossible[places], 0.0, _sigmoid(logits[places])))
        taught = (passed > 0) & (passed < samples)
        outcomes = outcomes_frame(found.drawn["prompt_id"], samples, passed)
        history = after_outcomes(found.history, outcomes, iteration, settings)
        if isinstance(config.strategy, GresoConfig):
            rates = adapted_rates(rates, outcomes, config.strategy)
        logits[places[taught]] += world.by_training
        logits += world.by_others * taught.mean()
        groups, informative, rollouts = groups + len(places), informative + int(taught.sum()), rollouts + samples.sum()
        expected.append(found.metrics["expected_informative"])
    return Campaign(
        rollouts=int(rollouts),
        groups=groups,
        informative=informative,
        expected=float(np.mean(expected)),
        touched=float((history["times_drawn"] > 0).mean()),
        pass_rate=float(np.where(impossible, 0.0, _sigmoid(logits)).mean()),
    )


def outcomes_frame(prompt_ids: pl.Series, samples: np.ndarray, passed: np.ndarray) -> pl.DataFrame:
    """Verdicts as `outcomes_of` gives them, with a reward of 1 for each pass."""
    share = passed / samples
    return pl.DataFrame(
        {
            "prompt_id": prompt_ids,
            "samples": samples,
            "successes": passed.astype(np.float64),
            "new_outcome_key": "verdict:verifier:key@1",
            "rewards": samples,
            "new_reward_mean": share,
            "new_reward_variance": share * (1 - share),
        }
    )


def _pool(world: World, luck: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    kind = luck.random(world.prompts)
    logits = luck.uniform(world.hardest, world.easiest, world.prompts)
    logits[(kind >= world.impossible) & (kind < world.impossible + world.solved)] = np.log(99.0)
    return logits, kind < world.impossible


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=World().prompts)
    parser.add_argument("--iterations", type=int, default=World().iterations)
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    world = World(prompts=chosen.prompts, iterations=chosen.iterations)
    print(world)
    print(
        "| select | informative groups / 100 rollouts | vs uniform | of the groups | expected | drawn | pass rate | s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    base = 0.0
    for name, select in STRATEGIES.items():
        started = time.perf_counter()
        runs = [simulate(world, seed, **select) for seed in range(chosen.seeds)]
        rate = statistics.mean(run.per_rollout for run in runs)
        base = base or rate
        share = statistics.mean(run.informative / run.groups for run in runs)
        means = [statistics.mean(getattr(run, field) for run in runs) for field in ("expected", "touched", "pass_rate")]
        shown = " | ".join(f"{value:.3f}" for value in (share, *means))
        print(f"| {name} | {100 * rate:.2f} | {rate / base:.2f} | {shown} | {time.perf_counter() - started:.1f} |")


if __name__ == "__main__":
    main()
