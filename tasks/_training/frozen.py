"""Reward models of kind "frozen", on disk and scoring: small heads over frozen middle-layer states of a base."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from storage.errors import InputError
from tasks._devices import choose_device
from tasks._maths.frozen_heads import FORMS, FrozenHeads
from tasks._training.batching import microbatch_tokens
from tasks._training.heads import DESCRIPTION
from tasks._training.member_scores import MemberScores
from tasks._training.states import StateReader, StatesSpec

KIND = "frozen"
HEADS = "heads.safetensors"


def save_frozen(heads: FrozenHeads, spec: StatesSpec, folder: Path) -> list[Path]:
    """Writes weights and description; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in heads.arrays.items()}, folder / HEADS
    )
    description = {
        "kind": KIND,
        "members": len(heads.score_mean),
        "form": heads.form,
        "states": asdict(spec),
        "score_mean": heads.score_mean.tolist(),
        "score_std": heads.score_std.tolist(),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
    return [folder / HEADS, folder / DESCRIPTION]


def load_frozen(folder: Path) -> tuple[FrozenHeads, StatesSpec]:
    """What `save_frozen` wrote. Raises `InputError` for a folder that holds no such reward model."""
    for name in (HEADS, DESCRIPTION):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name}; expected the folder of a reward model of kind {KIND}")
    description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
    if description.get("kind") != KIND or description.get("form") not in FORMS:
        raise InputError(
            f"{folder}: kind {description.get('kind')!r}, form {description.get('form')!r}; "
            f"expected {KIND!r} and one of {', '.join(FORMS)}"
        )
    score_mean, score_std = (np.array(description[name], dtype=np.float64) for name in ("score_mean", "score_std"))
    heads = FrozenHeads(description["form"], load_file(folder / HEADS), score_mean, score_std)
    return heads, StatesSpec.from_json(description["states"])


def score_frozen(
    base: Path,
    folder: Path,
    prompt_token_ids: Sequence[Sequence[int]],
    response_token_ids: Sequence[Sequence[int]],
    *,
    device: str = "auto",
    tokens_per_microbatch: int | None = None,
) -> MemberScores:
    """Scores of a saved reward model, in the order of the rows; states are read and dropped by micro-batch.

    Raises `InputError` for a base of another width than the heads were fitted on.
    """
    heads, spec = load_frozen(folder)
    place = choose_device(device)
    reader = StateReader(base, spec, place)
    if reader.features != len(heads.arrays["mean"]):
        raise InputError(
            f"{folder}: the heads read {len(heads.arrays['mean'])} features, the base {base} gives {reader.features}; "
            "score with the base that the reward model was fitted on"
        )
    prompts, responses = (
        [np.asarray(ids, dtype=np.int32) for ids in rows] for rows in (prompt_token_ids, response_token_ids)
    )
    raw = np.zeros((len(prompts), len(heads.score_mean)))
    budget = microbatch_tokens(tokens_per_microbatch, place.type)
    for rows, states in reader.batches(prompts, responses, tokens_per_microbatch=budget):
        raw[rows] = heads.raw(states)
    return MemberScores(raw, heads.score_mean, heads.score_std)
