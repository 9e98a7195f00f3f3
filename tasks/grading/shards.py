"""How grading falls into shards: every grader times every slice of the rollouts.

Slices are cut between prompts, so that a grader which compares a prompt's samples has them all. The bounds follow
from the number of shards and the batch alone: a shard of an earlier attempt fits whenever that number is equal.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from storage.errors import InputError
from tasks.grading.config import GraderConfig, GradingConfig


class GradingShard(NamedTuple):
    """One grader on the `rows` rollouts from `first` on."""

    grader: GraderConfig
    first: int
    rows: int


def shard_count(samples: Sequence[int], config: GradingConfig) -> int:
    """Shards for a batch of prompts with that many samples each: about `rows_per_shard` rollouts in each."""
    slices = min(-(-sum(samples) // config.rows_per_shard), len(samples))
    return max(1, slices) * len(config.graders)


def shard_at(index: int, count: int, samples: Sequence[int], graders: Sequence[GraderConfig]) -> GradingShard:
    """Shard `index` of `count`: all slices of the first grader, then of the next."""
    slices = count // len(graders)
    grader, part = divmod(index, slices)
    first, stop = slice_bounds(samples, slices)[part]
    return GradingShard(graders[grader], first, stop - first)


def slice_bounds(samples: Sequence[int], slices: int) -> list[tuple[int, int]]:
    """The rollouts [first, stop) of each slice, cut at the end of the prompt that reaches its even share.

    A slice is at most one prompt longer than the even share, and none is empty while there are as many prompts.
    """
    ends = np.cumsum([0, *samples])
    shares = np.arange(slices + 1) * int(ends[-1]) / slices
    places = np.searchsorted(ends, shares).tolist()
    places[0], places[-1] = 0, len(samples)
    for cut in range(1, slices):
        places[cut] = max(places[cut], min(places[cut - 1] + 1, len(samples)))
    for cut in range(slices - 1, 0, -1):
        places[cut] = min(places[cut], max(places[cut + 1] - 1, 0))
    return [(int(ends[start]), int(ends[stop])) for start, stop in itertools.pairwise(places)]


def check_order(prompt_ids: Sequence[str], batch_ids: Sequence[str], samples: Sequence[int], first: int) -> None:
    """Raises `InputError` unless the rollouts from `first` on lie in the batch's order, every prompt with its samples.

    Cuts between prompts are found by counting: in any other order they would part a prompt's samples.
    """
    expected = np.repeat(np.array(batch_ids, dtype=object), samples)[first : first + len(prompt_ids)]
    found = np.array(prompt_ids, dtype=object)[: len(expected)]
    wrong = np.flatnonzero(found != expected)
    if len(wrong) or len(found) < len(prompt_ids):
        row = int(wrong[0]) if len(wrong) else len(found)
        wanted = f"prompt {expected[row]}" if len(wrong) else "no more rollouts"
        raise InputError(
            f"rollout {first + row} is of prompt {prompt_ids[row]}, the batch says {wanted}; "
            "grade with the batch that it was made from"
        )
