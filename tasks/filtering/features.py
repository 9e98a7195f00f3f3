"""What is measured of every output in one pass over the texts and tokens; only numbers stay in memory.

A rule that looks at outputs names its features; what no rule asks for isn't computed.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

import numpy as np
import polars as pl
from jaxtyping import Int

from tasks._maths.languages import ranked_languages
from tasks._maths.redundancy import SLOTS, Shingles, repeated_shares, shingle, signatures

MEASURED_COLUMNS = ["rollout_id", "prompt_id", "iteration", "finish_reason", "text", "token_ids"]
SIGNATURE, DIGEST = "signature", "digest"
# Shingles take some hundred bytes a token while they are made.
ROWS_AT_ONCE = 2_048


class Answers:
    """Some rollouts' outputs: their texts, and their tokens as one flat array."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self.texts = frame["text"]
        self._token_ids = frame["token_ids"]

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def tokens(self) -> Int[np.ndarray, " tokens"]:
        """Token ids of all rows, one row after the other."""
        return self._token_ids.explode(empty_as_null=False).to_numpy()

    @cached_property
    def lengths(self) -> Int[np.ndarray, " rows"]:
        """Tokens per row."""
        return self._token_ids.list.len().to_numpy().astype(np.int64)

    def shingles(self, n: int) -> Shingles:
        """The token n-grams of every row."""
        return shingle(self.tokens, self.lengths, n)


Feature = Callable[[Answers], pl.Series]


def measure(batches: Iterable[pl.DataFrame], features: Mapping[str, Feature]) -> pl.DataFrame:
    """One row per rollout, in their order: its ids, `tokens` (how many), `output` (a hash of its normalised text) and
    the features.

    `batches` hold `MEASURED_COLUMNS`.
    """
    parts = (batch.iter_slices(ROWS_AT_ONCE) if features else (batch,) for batch in batches)
    measured = [_measured(part, features) for slices in parts for part in slices]
    if not measured:
        return _measured(_no_rollouts(), features)
    # Column by column, the parts let go: all at once would take twice the memory.
    return pl.DataFrame(
        [pl.concat([part.drop_in_place(name) for part in measured], rechunk=True) for name in measured[0].columns]
    )


def _measured(batch: pl.DataFrame, features: Mapping[str, Feature]) -> pl.DataFrame:
    answers = Answers(batch)
    return batch.select(
        "rollout_id",
        pl.col("prompt_id").cast(pl.Categorical).alias("group_id"),
        pl.col("iteration").cast(pl.Int32),
        pl.col("finish_reason").cast(pl.Categorical),
        pl.col("token_ids").list.len().cast(pl.UInt32).alias("tokens"),
        # Within one run; what is stored and compared later is `DIGEST`.
        normalised(pl.col("text")).hash().alias("output"),
    ).with_columns(feature(answers).alias(name) for name, feature in features.items())


def _no_rollouts() -> pl.DataFrame:
    types = {"iteration": pl.Int32(), "token_ids": pl.List(pl.Int32)}
    return pl.DataFrame(schema={name: types.get(name, pl.String()) for name in MEASURED_COLUMNS})


def normalised(text: pl.Expr) -> pl.Expr:
    """Texts that differ in case and blanks alone, made equal."""
    return text.str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars(" ")


def minhash(answers: Answers) -> pl.Series:
    """The MinHash signature of token 5-grams."""
    marks = signatures(answers.shingles(5), len(answers))
    return pl.Series(SIGNATURE, marks, dtype=pl.Array(pl.UInt8, SLOTS))


def text_digest(answers: Answers) -> pl.Series:
    """64 bits of BLAKE2 of the normalised text: unlike polars' hash the same in every version, so it can be stored."""
    texts = answers.texts.to_frame("text").select(normalised(pl.col("text")))["text"]
    joined = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return pl.Series(DIGEST, np.frombuffer(joined, dtype="<u8"), dtype=pl.UInt64)


def repeated(n: int) -> Feature:
    """The share of token n-grams that were there before."""
    return lambda answers: pl.Series(repeated_shares(answers.shingles(n), len(answers)))


def language_share(languages: tuple[str, ...], min_letters: int) -> Feature:
    """The probability of the languages together; 1 for a text of fewer letters."""

    def share(text: str) -> float:
        if sum(map(str.isalpha, text)) < min_letters:
            return 1.0
        return min(1.0, sum(share for name, share in ranked_languages(text) if name in languages))

    # The model reads one text at a time.
    return lambda answers: pl.Series([share(text) for text in answers.texts], dtype=pl.Float64)
