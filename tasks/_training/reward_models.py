"""One door for scoring, whatever kind of reward model lies in a folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from storage.errors import InputError
from tasks._training.heads import DESCRIPTION, score_heads
from tasks._training.member_scores import MemberScores

FIRST_KIND = "lora"  # of folders that are older than kinds


class Scorer(Protocol):
    """Scores rows, in their order, by the reward model in `folder`, which was trained on top of `base`."""

    def __call__(
        self,
        base: Path,
        folder: Path,
        prompt_token_ids: Sequence[Sequence[int]],
        response_token_ids: Sequence[Sequence[int]],
        *,
        device: str = "auto",
        tokens_per_microbatch: int | None = None,
    ) -> MemberScores: ...


def score_frozen(
    base: Path,
    folder: Path,
    prompt_token_ids: Sequence[Sequence[int]],
    response_token_ids: Sequence[Sequence[int]],
    *,
    device: str = "auto",
    tokens_per_microbatch: int | None = None,
) -> MemberScores:
    """By heads on frozen states."""
    from tasks._training.frozen import score_frozen as score_by_states

    return score_by_states(
        base,
        folder,
        prompt_token_ids,
        response_token_ids,
        device=device,
        tokens_per_microbatch=tokens_per_microbatch,
    )


# What `kind` in reward_model.json may say -> what scores it.
SCORERS: dict[str, Scorer] = {"lora": score_heads, "generative": score_heads, "frozen": score_frozen}


def score(
    base: Path,
    folder: Path,
    prompt_token_ids: Sequence[Sequence[int]],
    response_token_ids: Sequence[Sequence[int]],
    *,
    device: str = "auto",
    tokens_per_microbatch: int | None = None,
) -> MemberScores:
    """Each member's scores, in the order of the rows; of an old folder with one head, one member.

    Raises `InputError` for a folder without a reward model, or with one of a kind that there isn't.
    """
    return SCORERS[kind_of(folder)](
        base,
        folder,
        prompt_token_ids,
        response_token_ids,
        device=device,
        tokens_per_microbatch=tokens_per_microbatch,
    )


def kind_of(folder: Path) -> str:
    """The kind of the reward model in a folder. Raises `InputError` when there is none, or of an unknown kind."""
    path = folder / DESCRIPTION
    if not path.is_file():
        raise InputError(f"{folder}: no {DESCRIPTION}; expected a reward model's folder")
    kind = json.loads(path.read_text()).get("kind", FIRST_KIND)
    if kind not in SCORERS:
        raise InputError(f"{path}: kind is {kind!r}, expected one of {', '.join(SCORERS)}; was it made by a newer one?")
    return kind
