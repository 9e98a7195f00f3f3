"""Our side of the reward-model benchmark: `python own_reward.py JOB.json` prints what it measured as JSON.

The calls are those of the stage `reward_model` and of its door for scoring. Timed is from the start of the first
optimizer step to the end of the last one, checkpoints included, and the scoring of all answers; loading isn't.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from apart import peak_resident_bytes


class Stopwatch:
    """Takes the place of a progress bar, which is told of the start of every step and of the end."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, *_: object) -> None:
        self.times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """From the first step's start to the last one's end."""
        return self.times[-1] - self.times[0]


def trained(job: dict, pairs: list, watch: Stopwatch) -> tuple[Any, float]:
    """A fresh model trained on pairs once under a watch, and the norm of its first gradient.

    A single head's adapter and head at the start are left for the other side.
    """
    import torch
    from safetensors.torch import save_file

    from tasks._training.heads import HeadDescription, fresh_scoring_model
    from tasks._training.loop import Surroundings
    from tasks._training.lora import LoraSpec, trainable_parameters
    from tasks._training.scalar_heads import HeadSpec
    from tasks.reward_model.config import RewardModelConfig
    from tasks.reward_model.loss import LossNumbers
    from tasks.reward_model.train import fit

    config = RewardModelConfig(
        members=job["members"],
        batch_pairs=job["batch_pairs"],
        learning_rate=job["learning_rate"],
        lora_rank=job["rank"],
        lora_alpha=2 * job["rank"],
        device="cpu",
    )
    description = HeadDescription(2, job["dtype"], None, members=config.members)
    spec, heads = LoraSpec(config.lora_rank, config.lora_alpha), HeadSpec(config.members)
    device = torch.device("cpu")
    model = fresh_scoring_model(Path(job["base"]), spec, description, seed=0, device=device, heads=heads)
    if config.members == 1:
        start = {name: value.detach().clone() for name, value in trainable_parameters(model).items()}
        save_file(start, job["start"])
    with tempfile.TemporaryDirectory() as scratch:
        surroundings = Surroundings(Path(scratch), config.checkpoint_every_steps, watch)
        history = fit(model, LossNumbers(config, 0.0), pairs, config, 0, surroundings)
    return model, history[0]["grad_norm"]


def read_pairs(job: dict) -> list:
    """The job's pairs, weighed for each member."""
    import numpy as np

    from tasks.reward_model.pairs import Pair
    from tasks.reward_model.weights import weighed

    rows = json.loads(Path(job["pairs"]).read_text())
    tokens = [{side: np.array(ids, dtype=np.int32) for side, ids in row.items()} for row in rows]
    pairs = [Pair(f"p{number}", f"c{number}", **row) for number, row in enumerate(tokens)]
    return weighed(pairs, job["members"], bootstrap=True, seed=0)


def scoring_seconds(model: Any, pairs: list, repetitions: int) -> list[float]:
    """Of all answers; the first time warms up and isn't counted."""
    from tasks._training.batching import microbatch_tokens
    from tasks._training.heads import score_rows

    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    seconds = []
    for _ in range(repetitions + 1):
        started = time.perf_counter()
        score_rows(model, prompts, answers, tokens_per_microbatch=microbatch_tokens(None, "cpu"))
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def main(path: str) -> None:
    """One step to warm up, then whole trainings, and scorings by the last trained model."""
    job = json.loads(Path(path).read_text())
    from tasks._devices import choose_dtype

    job["dtype"] = choose_dtype("auto", "cpu")
    pairs = read_pairs(job)
    _, norm = trained(job, pairs[: job["batch_pairs"]], Stopwatch())
    watches = [Stopwatch() for _ in range(job["repetitions"])]
    for watch in watches:
        model, _ = trained(job, pairs, watch)
    measured = {
        "seconds": [watch.seconds for watch in watches],
        "score_seconds": scoring_seconds(model, pairs, job["repetitions"]),
        "grad_norm": norm,
        "peak_bytes": peak_resident_bytes(),
        "dtype": job["dtype"],
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main(sys.argv[1])
