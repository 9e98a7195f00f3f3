"""Preference pairs for the tiny model, and a reward model trained on them."""

import numpy as np
import polars as pl

from storage.records import RECORDS
from tasks.reward_model.config import RewardModelConfig
from tasks.reward_model.train import train_reward_model

SCHEMA = RECORDS["preferences"].create_empty().schema
CONFIG = RewardModelConfig(
    learning_rate=1e-2, batch_pairs=8, epochs=3, dtype="float32", device="cpu", lora_rank=4, lora_alpha=8
)
WORDS = ("pond", "frog", "sea", "water", "still", "old", "lines", "three", "sound", "answer")


def quiet(done, total, label):
    pass


def preferences(pairs=64, seed=0, flip=False, per_prompt=2, **columns):
    """Answers that end in a full stop are preferred; a quarter of the prompts is held out."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(pairs):
        prompt = number // per_prompt
        words = [" ".join(random.choice(WORDS, random.integers(2, 6))) for _ in range(2)]
        chosen, rejected = f"{words[0]}.", f"{words[1]}!"
        rows.append(
            dict(pair_id=f"p{number}", prompt_id=f"q{prompt}", cluster_id=f"c{prompt}")
            | dict(messages=[{"role": "user", "content": f"Write {WORDS[prompt % 10]} {prompt}"}])
            | dict(chosen=rejected if flip else chosen, rejected=chosen if flip else rejected)
            | dict(source="grader", strength=0.5, split="eval" if prompt % 4 == 0 else "train")
        )
    return pl.DataFrame(rows, schema=SCHEMA).with_columns(**columns)


def train(frame, base, scratch, config=CONFIG, progress=quiet, **options):
    return train_reward_model(frame, base, config, seed=1, scratch=scratch, progress=progress, **options)
