"""The parity gate: the trainer must load the same policy that the engine served."""

from typing import Any

import numpy as np

from storage.errors import InputError
from storage.fingerprints import derive_seed
from tasks._devices import choose_dtype
from tasks._training.parallel import ALONE, World
from tasks.policy_update.config import PolicyUpdateConfig
from tasks.policy_update.measure import recompute
from tasks.policy_update.rows import TrainingRows

MAX_MEAN_DIFFERENCE = {"bfloat16": 0.1, "float16": 0.05, "float32": 0.02}
"""Nats per token, by the coarser dtype of the two. bfloat16 alone makes about 0.03 against a float32 forward."""


def check_parity(
    model: Any, rows: TrainingRows, config: PolicyUpdateConfig, *, seed: int, world: World = ALONE
) -> dict[str, float]:
    """Compares the engine's log-probabilities with the trainer's on a sample of fresh rows; returns what it measured.

    Only rows of age 0 can be compared: older ones were sampled from another policy. Without any, nothing is
    measured. Raises `InputError` when the mean absolute difference per token is above the limit.
    """
    fresh = np.flatnonzero(rows.ages == 0)
    if not config.parity.enabled or not len(fresh):
        return {}
    device = next(model.parameters()).device.type
    both = (choose_dtype(name, device) for name in (config.dtype, config.parity.engine_dtype))
    coarser = max(both, key=MAX_MEAN_DIFFERENCE.__getitem__)
    limit = config.parity.max_mean_difference or MAX_MEAN_DIFFERENCE[coarser]
    random = np.random.default_rng(derive_seed(seed, "parity"))
    chosen = np.sort(random.choice(fresh, size=min(config.parity.rows, len(fresh)), replace=False)).tolist()
    recomputed, _ = recompute(model, rows, chosen, config, world=world)
    differences = np.concatenate([np.abs(recomputed[row] - rows.old_logprobs[row]) for row in chosen])
    mean, largest = float(differences.mean()), float(differences.max())
    if not mean <= limit:
        raise InputError(
            f"the engine served another model than the trainer loads: log-probabilities of {len(differences)} tokens "
            f"in {len(chosen)} rollouts differ by {mean:.3f} nats on average (at most {largest:.3f}), expected at most "
            f"{limit} in {coarser}. Check that base model, adapter, chat template, temperature and "
            "top_p/top_k of the rollouts are the trainer's"
        )
    return {"parity_mean_difference": mean, "parity_max_difference": largest}
