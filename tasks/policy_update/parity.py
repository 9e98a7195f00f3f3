"""The parity gate: the trainer must load the same policy that the engine served."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from storage.errors import InputError
from storage.fingerprints import derive_seed
from tasks._training.batching import group_rows, microbatch_tokens, plan_microbatches
from tasks._training.logprobs import token_logprobs
from tasks._training.packing import pack
from tasks.policy_update.config import PolicyUpdateConfig
from tasks.policy_update.rows import TrainingRows

Recomputed = dict[int, np.ndarray]


def recompute_logprobs(
    model: Any, rows: TrainingRows, chosen: Sequence[int], config: PolicyUpdateConfig, device: torch.device
) -> Recomputed:
    """Row number -> the log-probabilities (nat, one per token) that `model` gives the row's tokens."""
    prompts = [rows.prompts[row] for row in chosen]
    responses = [rows.responses[row] for row in chosen]
    budget = microbatch_tokens(config.tokens_per_microbatch, device.type)
    groups = group_rows(prompts, responses, max_tokens=budget, share_prefix=config.share_prefix)
    found: Recomputed = {}
    for microbatch in plan_microbatches(groups, budget):
        batch = pack(microbatch, pad_token_id=0, device=device)
        numbers = [chosen[index] for index in batch.rows]
        temperatures = torch.tensor(rows.temperatures[numbers], dtype=torch.float32, device=device)
        with torch.no_grad():
            logprobs = token_logprobs(model, batch, temperatures).logprobs.cpu().numpy()
        for number, line in zip(numbers, logprobs, strict=True):
            found[number] = line[: len(rows.responses[number])]
    return found


def check_parity(
    model: Any, rows: TrainingRows, config: PolicyUpdateConfig, *, seed: int, device: torch.device
) -> dict[str, float]:
    """Compares the engine's log-probabilities with the trainer's on a sample of fresh rows; returns what it measured.

    Only rows of age 0 can be compared: older ones were sampled from another policy. Without any, nothing is
    measured. Raises `InputError` when the mean absolute difference per token is above the configured one.
    """
    fresh = np.flatnonzero(rows.ages == 0)
    if not config.parity.enabled or not len(fresh):
        return {}
    random = np.random.default_rng(derive_seed(seed, "parity"))
    chosen = np.sort(random.choice(fresh, size=min(config.parity.rows, len(fresh)), replace=False)).tolist()
    recomputed = recompute_logprobs(model, rows, chosen, config, device)
    differences = np.concatenate([np.abs(recomputed[row] - rows.old_logprobs[row]) for row in chosen])
    mean, largest = float(differences.mean()), float(differences.max())
    if not mean <= config.parity.max_mean_difference:
        raise InputError(
            f"the engine served another model than the trainer loads: log-probabilities of {len(differences)} tokens "
            f"in {len(chosen)} rollouts differ by {mean:.3f} nats on average (at most {largest:.3f}), expected at most "
            f"{config.parity.max_mean_difference}. Check that base model, adapter, chat template, temperature and "
            "top_p/top_k of the rollouts are the trainer's"
        )
    return {"parity_mean_difference": mean, "parity_max_difference": largest}
