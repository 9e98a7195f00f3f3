"""The rollouts of several rounds in the order of one batch, pure: whose turn it is, and what they add up to."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl

from storage.errors import InputError
from tasks.rollouts.table import shard_bounds


class Feed:
    """Frames of rollouts that follow each other, taken in as many rows at a time as are wanted."""

    def __init__(self, frames: Iterator[pl.DataFrame]) -> None:
        self._frames = frames
        self._left = pl.DataFrame()

    def take(self, rows: int) -> list[pl.DataFrame]:
        """The next rows, in pieces. Raises `InputError` where there are fewer."""
        pieces = []
        while rows > 0:
            if self._left.is_empty():
                frame = next(self._frames, None)
                if frame is None:
                    raise InputError(f"a round has {rows} rollouts less than its batch asks for; make it again")
                self._left = frame
            pieces.append(self._left[:rows])
            self._left = self._left[rows:]
            rows -= len(pieces[-1])
        return pieces


def turns_of(batch: pl.DataFrame, parts: Sequence[pl.DataFrame], rows: int) -> Iterator[list[int]]:
    """Of every part, how many rollouts belong to the batch's next prompts: about `rows` in all, groups whole.

    `parts` are the `BatchEntry` frames that the rollouts were sampled from, one after the other. Raises `InputError`
    unless each has its prompts in the batch's order and together they have the batch's samples.
    """
    places = [_places(batch, part) for part in parts]
    ends = [np.cumsum([0, *part["samples"].to_list()]) for part in parts]
    together = np.zeros(len(batch), dtype=np.int64)
    for place, part in zip(places, parts, strict=True):
        together[place] += part["samples"].to_numpy()
    if not np.array_equal(together, batch["samples"].to_numpy()):
        raise InputError("the rounds' samples don't add up to the joined batch's; join the batches of these rounds")
    for bounds in shard_bounds(batch["samples"].to_list(), rows):
        cuts = [end[np.searchsorted(place, bounds)] for place, end in zip(places, ends, strict=True)]
        yield [int(stop - first) for first, stop in cuts]


def _places(batch: pl.DataFrame, part: pl.DataFrame) -> np.ndarray:
    numbered = batch.select("prompt_id").with_row_index("place")
    places = part.select("prompt_id").join(numbered, on="prompt_id", how="left", maintain_order="left")["place"]
    if places.null_count() or not (np.diff(places.to_numpy().astype(np.int64)) > 0).all():
        raise InputError("a round's prompts don't lie in the joined batch's order; join the batches of these rounds")
    return places.to_numpy().astype(np.int64)


def in_order(rollouts: pl.DataFrame, batch: pl.DataFrame) -> pl.DataFrame:
    """`Rollout` rows by the batch's order, then by `sample_index`.

    Raises `InputError` unless every prompt's samples are numbered from 0 on without a gap.
    """
    order = batch.select("prompt_id", pl.col("position").alias("_position"))
    placed = rollouts.join(order, on="prompt_id", how="left").sort("_position", "sample_index")
    numbered = pl.col("sample_index") == pl.int_range(pl.len()).over("_position")
    wrong = placed.filter(pl.col("_position").is_null() | ~numbered)
    if len(wrong):
        raise InputError(
            f"rollout {wrong['rollout_id'][0]}: sample {wrong['sample_index'][0]} of prompt {wrong['prompt_id'][0]} "
            "doesn't follow the samples before it; join the rounds of one iteration"
        )
    return placed.drop("_position")


def joined_metrics(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The metrics of all rounds' rollouts, as the stage `rollouts` tells them of one round's."""
    sums = {name: sum(part[name] for part in parts) for name in ("rollouts", "tokens", "engine_seconds")}
    truncated = sum(part["truncated_fraction"] * part["rollouts"] for part in parts)
    return {
        **sums,
        "tokens_per_s": sums["tokens"] / max(sums["engine_seconds"], 1e-9),
        "length_mean": sums["tokens"] / max(sums["rollouts"], 1.0),
        "truncated_fraction": truncated / max(sums["rollouts"], 1.0),
    }
