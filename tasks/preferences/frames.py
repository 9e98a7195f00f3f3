"""`Preference` frames on their way: all columns but the split, which is known once all pairs are there."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from storage.fingerprints import digest
from storage.records import Preference

PREFERENCE_SCHEMA = pl.Schema(Preference.create_empty().schema)
PAIR_SCHEMA = pl.Schema({name: dtype for name, dtype in PREFERENCE_SCHEMA.items() if name != "split"})
IS_TIE = pl.col("tie").fill_null(False)


def completed(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with the columns of `Preference` but `split`, in their order and types; those it lacks are null."""
    lacking = [pl.lit(None, dtype).alias(name) for name, dtype in PAIR_SCHEMA.items() if name not in frame.columns]
    return frame.with_columns(lacking).select(PAIR_SCHEMA.names()).cast(PAIR_SCHEMA)


def pairs_of_rows(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """The same of single rows; a key that a row lacks is null."""
    return pl.DataFrame(list(rows), schema=PAIR_SCHEMA)


def joined(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Unsplit frames below each other, in their order."""
    return pl.concat([pl.DataFrame(schema=PAIR_SCHEMA), *(completed(frame) for frame in frames)])


def prompt_key() -> pl.Expr:
    """A hash of what was asked: equal for equal chats, whatever their `prompt_id`, which covers a verifier too."""
    turn = pl.format("{}\x1f{}", pl.element().struct.field("role"), pl.element().struct.field("content").fill_null(""))
    return pl.col("messages").list.eval(turn).list.join("\x1e").hash(0)


def prompt_text() -> pl.Expr:
    """What of a chat is compared with others: its turns without the system message, which prompts share."""
    spoken = pl.element().filter(pl.element().struct.field("role") != "system").struct.field("content")
    return pl.col("messages").list.eval(spoken).list.join(" ")


def pair_name(*parts: Any) -> str:
    """The id of a pair that has no rollouts: a hash of what makes it that pair."""
    return digest(list(parts))
