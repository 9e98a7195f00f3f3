"""Policy updates on the tiny model: trajectories as an engine would have logged them, and the update itself."""

import numpy as np
import polars as pl
import torch

from storage.records import RECORDS
from tasks._training.lora import load_causal_model, load_lora
from tasks.policy_update.config import ParityConfig, PolicyUpdateConfig
from tasks.policy_update.measure import recompute_all
from tasks.policy_update.policy import PolicyFolders
from tasks.policy_update.rows import read_rows
from tasks.policy_update.update import Lessons, update_policy

CPU = torch.device("cpu")
CONFIG = PolicyUpdateConfig(
    learning_rate=5e-3,
    optimizer_steps=2,
    max_tokens=8,
    dtype="float32",
    device="cpu",
    lora={"rank": 4, "alpha": 8},
    parity={"engine_dtype": "float32"},
)
NO_PARITY = {"parity": ParityConfig(enabled=False)}
SCHEMA = RECORDS["trajectories"].create_empty().schema


def quiet(done, total, label):
    pass


def trajectories(model_folder, groups=4, samples=4, advantages=None, seed=0, temperature=1.0):
    """Random samples with the log-probabilities that the model gives them, as an engine would have logged them."""
    random = np.random.default_rng(seed)
    rows = []
    for group in range(groups):
        prompt = random.integers(3, 300, 4 + group).tolist()
        for sample in range(samples):
            advantage = advantages[group][sample] if advantages else (1.0 if sample == 0 else -1.0 / (samples - 1))
            tokens = random.integers(3, 300, int(random.integers(1, 8))).tolist()
            rows.append(
                dict(rollout_id=f"{group}-{sample}", group_id=f"g{group}", prompt_id=f"g{group}", policy_id="p")
                | dict(prompt_token_ids=prompt, token_ids=tokens, logprobs=[0.0] * len(tokens))
                | dict(
                    temperature=temperature,
                    reward=advantage,
                    advantage=advantage,
                    weight=1.0,
                    age=0,
                    passed=sample == 0,
                )
            )
    frame = pl.DataFrame(rows, schema=SCHEMA)
    return with_logprobs(frame, load_causal_model(model_folder, "float32", CPU))


def with_logprobs(frame, model):
    rows = read_rows(frame)
    found, _ = recompute_all(model, rows, range(len(rows)), CONFIG)
    return frame.with_columns(pl.Series("logprobs", [line.tolist() for line in found], dtype=SCHEMA["logprobs"]))


def update(frame, base, scratch, config=CONFIG, adapter=None, progress=quiet, seed=3, reference=None):
    lessons = Lessons(frame, reference=reference)
    return update_policy(lessons, PolicyFolders(base, adapter), config, seed=seed, scratch=scratch, progress=progress)


def mean_logprob(frame, base, adapter):
    """Per row, the sum of its tokens' log-probabilities under base and adapter."""
    model = load_lora(load_causal_model(base, "float32", CPU), adapter, trainable=False)
    return with_logprobs(frame, model)["logprobs"].list.sum().to_numpy()
