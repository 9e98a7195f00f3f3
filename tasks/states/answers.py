"""The distinct answers of a preference set, pure."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from storage.fingerprints import digest
from tasks._engines.chat import render
from tasks._training.batching import TokenIds

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class DistinctAnswers:
    """Each (prompt, answer) once in token ids, by its id, and the `PairedAnswer` frame of which pair compares which."""

    answer_ids: list[str]
    prompts: list[TokenIds]
    responses: list[TokenIds]
    paired: pl.DataFrame


def distinct_answers(preferences: pl.DataFrame, tokenizer: Any) -> DistinctAnswers:
    """The answers of a `Preference` frame in the order in which they first come, the chosen one of a pair first.

    An answer's id is the digest of its prompt's messages and its text: the same answer has it in every artifact.
    """
    seen: dict[str, tuple[TokenIds, str]] = {}
    pairs = []
    for row in preferences.select("pair_id", "messages", *SIDES).iter_rows(named=True):
        prompt: TokenIds | None = None
        ids = []
        for side in SIDES:
            ids.append(answer_id(row["messages"], row[side]))
            if ids[-1] not in seen:
                prompt = np.array(render(tokenizer, row["messages"]), dtype=np.int32) if prompt is None else prompt
                seen[ids[-1]] = (prompt, row[side])
        pairs.append((row["pair_id"], *ids))
    texts = [text for _, text in seen.values()]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    names = ["pair_id", *(f"{side}_answer_id" for side in SIDES)]
    paired = pl.DataFrame(pairs, schema=dict.fromkeys(names, pl.String), orient="row")
    responses = [np.array(each, dtype=np.int32) for each in encoded]
    return DistinctAnswers(list(seen), [prompt for prompt, _ in seen.values()], responses, paired)


def answer_states(answer_ids: list[str], states: Float[np.ndarray, "answers features"]) -> pl.DataFrame:
    """The `AnswerState` frame."""
    rows = pl.Series(np.ascontiguousarray(states, dtype=np.float32)).arr.to_list()
    return pl.DataFrame({"answer_id": pl.Series(answer_ids, dtype=pl.String), "state": rows})


def answer_id(messages: list[dict[str, str]], text: str) -> str:
    """32 hexadecimal digits."""
    return digest([[[message["role"], message["content"]] for message in messages], text])
