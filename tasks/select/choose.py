"""Choosing the prompts of an iteration, pure: the strategy's own, and the shares of rehearsal and exploration."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from storage.fingerprints import derive_seed
from tasks.select.config import SelectConfig
from tasks.select.strategies import STRATEGIES, Known

Places = Int[np.ndarray, " drawn"]
Mask = Bool[np.ndarray, " prompts"]


class Chosen(NamedTuple):
    """Places in the pool, in the order of the batch, and how many of them came for which reason."""

    places: Places
    explored: int
    rehearsed: int
    retired: int


def choose(known: Known, config: SelectConfig, seed: int) -> Chosen:
    """`config.prompts_per_iteration` places of the pool, which is at least as large.

    Retired prompts and what is explored are taken first, by their shares; the strategy fills the batch from the rest,
    and where that is too small the retired ones that were drawn longest ago do. The result follows from the seed and
    from what is known: prompts stand in `known` by their ids.
    """
    wanted, size = config.prompts_per_iteration, len(known.times_drawn)
    shuffle = np.empty(size, dtype=np.int64)
    shuffle[np.random.default_rng(seed).permutation(size)] = np.arange(size)
    random = np.random.default_rng(derive_seed(seed, "strategy"))
    retired = np.zeros(size, dtype=bool)
    if config.retire_from is not None:
        retired = known.observed & (known.posterior.mean >= config.retire_from)
    free = np.ones(size, dtype=bool)

    def take(count: int, among: Mask, key: np.ndarray) -> Places:
        taken = first_places(count, free & among, key, shuffle)
        free[taken] = False
        return taken

    rehearsed = take(_share(config.rehearsal_share, wanted, random), retired, known.last_iteration)
    exploring = min(_share(config.exploration_share, wanted, random), wanted - len(rehearsed))
    failed = take(_share(0.5, exploring, random), ~retired & known.failed, known.last_iteration)
    least_drawn = take(exploring - len(failed), ~retired, known.times_drawn)
    explored = np.concatenate([failed, least_drawn])
    open_places = wanted - len(rehearsed) - len(explored)
    priority = STRATEGIES[config.strategy.name](known, config.strategy, random)
    drawn = take(open_places, ~retired, -priority)
    filled = take(open_places - len(drawn), retired, known.last_iteration)
    return Chosen(
        places=np.concatenate([drawn, explored, rehearsed, filled]),
        explored=len(explored),
        rehearsed=len(rehearsed) + len(filled),
        retired=int(retired.sum()),
    )


def first_places(count: int, among: Mask, key: np.ndarray, shuffle: np.ndarray) -> Places:
    """The `count` places with the lowest keys, equal ones as shuffled; fewer where there are no more."""
    places = np.flatnonzero(among)
    if count <= 0 or not len(places):
        return places[:0]
    if count < len(places):
        # Only what may be taken is sorted: of a large pool that is little.
        last = np.partition(key[places], count - 1)[count - 1]
        lower, equal = places[key[places] < last], places[key[places] == last]
        missing = count - len(lower)
        places = np.concatenate([lower, equal[np.argpartition(shuffle[equal], missing - 1)[:missing]]])
    return places[np.lexsort((shuffle[places], key[places]))]


def _share(share: float, of: int, random: np.random.Generator) -> int:
    """A whole number whose expectation is `share * of`: a small share of a small batch isn't always nothing."""
    return int(np.floor(share * of + random.random()))
