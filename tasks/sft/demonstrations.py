"""Rows of source files as demonstrations: token ids, and which of them are taught. Pure but for reading."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool
from jinja2 import TemplateError

from storage.errors import InputError
from storage.fingerprints import digest
from tasks._engines.chat import render
from tasks._sources.fields import UnusableField, checked_turns, normal_text, normalise_text, present, written_text
from tasks._sources.files import file_digests, source_files
from tasks._sources.reading import check_columns, raise_together, read_file
from tasks._sources.rows import Rejection, Row, limit_rejections
from tasks._sources.split import split_by_cluster
from tasks._training.batching import TokenIds
from tasks.sft.config import DemonstrationSource, SftConfig

Chat = list[dict[str, str]]


@dataclass(frozen=True)
class Demonstration:
    """A sequence to learn from. `taught[i]` says whether token i is predicted by the loss; the first never is.

    Demonstrations with equal `prompt_id` answer the same prompt.
    """

    prompt_id: str
    token_ids: TokenIds
    taught: Bool[np.ndarray, " tokens"]

    @property
    def taught_tokens(self) -> int:
        return int(self.taught.sum())


@dataclass(frozen=True)
class Tokens:
    """What turns text into token ids: a tokenizer, the tokens that end a turn, and the longest row allowed."""

    tokenizer: Any
    stops: frozenset[int]
    max_tokens: int


def check_demonstrations(config: SftConfig) -> None:
    """Looks at every source without reading it whole. Raises one `InputError` that lists what is missing."""
    raise_together(partial(_check_source, source) for source in config.sources)


def source_digests(config: SftConfig) -> list[list[str]]:
    """What each source's files hold, wherever they lie: part of the stage's fingerprint."""
    return [file_digests(source.path, source.format) for source in config.sources]


def read_demonstrations(config: SftConfig, tokens: Tokens) -> tuple[list[Demonstration], list[Rejection]]:
    """The demonstrations of all sources in their order, and the rows that were set aside.

    Raises `InputError` for a file that can't be read, too many bad rows, or none that is good.
    """
    found: list[Demonstration] = []
    rejections: list[Rejection] = []
    good = 0
    for source in config.sources:
        for row in _rows(source):
            made = row if isinstance(row, Rejection) else demonstrations_of_row(row, source, tokens)
            if isinstance(made, Rejection):
                rejections.append(made)
            else:
                found += made
                good += 1
    limit_rejections(good, rejections, config.max_rejected_fraction, "sft")
    if not found:
        where = ", ".join(source.path for source in config.sources)
        raise InputError(f"no demonstrations: {where} hold no usable row; add rows or correct sft.sources")
    return found, rejections


def demonstrations_of_row(row: Row, source: DemonstrationSource, tokens: Tokens) -> list[Demonstration] | Rejection:
    """One demonstration, or one per assistant turn where the chat template rewrites earlier turns."""
    field = source.columns[-1]
    try:
        if source.text_field is not None:
            text = written_text(present(row, source.text_field), source.text_field)
            made = [_demonstration_of_text(text, field, tokens)]
        else:
            made = demonstrations_of_chat(_chat(row, source), field, tokens)
        for one in made:
            if len(one.token_ids) > tokens.max_tokens:
                expected = f"at most {tokens.max_tokens} tokens (sft.max_tokens)"
                raise UnusableField("too_long", field, len(one.token_ids), expected)
    except UnusableField as wrong:
        return wrong.at(row)
    return made


def demonstrations_of_chat(chat: Chat, field: str, tokens: Tokens) -> list[Demonstration]:
    """A chat whose assistant turns are taught, each from behind the generation prompt to its end-of-turn token.

    A turn's tokens are those that the template adds to the prompt which an engine would be given there. One
    sequence holds all turns if each is a beginning of the next (it is, unless a template drops earlier thoughts).
    Raises `UnusableField` where the template refuses the chat or doesn't end its turns.
    """
    prompt_id = digest(chat[: next(i for i, turn in enumerate(chat) if turn["role"] == "assistant")])
    turns = [
        _turn(chat[: i + 1], field, tokens, prompt_id) for i, turn in enumerate(chat) if turn["role"] == "assistant"
    ]
    whole = turns[-1]
    if not all(_begins(turn.token_ids, whole.token_ids) for turn in turns):
        return turns
    taught = whole.taught.copy()
    for turn in turns[:-1]:
        taught[: len(turn.taught)] |= turn.taught
    return [Demonstration(prompt_id, whole.token_ids, taught)]


def split_held_out(
    demonstrations: Sequence[Demonstration], fraction: float, seed: int
) -> tuple[list[Demonstration], list[Demonstration]]:
    """The demonstrations that train and those that only measure; those of one prompt are never in both.

    Raises `InputError` when a fraction above 0 would hold out none or all.
    """
    if fraction == 0:
        return list(demonstrations), []
    wanted = max(1, round(fraction * len(demonstrations)))
    splits = split_by_cluster([one.prompt_id for one in demonstrations], wanted, seed)
    parts = [[one for one, split in zip(demonstrations, splits, strict=True) if split == s] for s in ("train", "eval")]
    if not all(parts):
        raise InputError(
            f"{len(parts[1])} of {len(demonstrations)} demonstrations would be held out, {wanted} are wanted, and "
            "those of one prompt stay together; change sft.heldout_fraction (0: none), or add prompts"
        )
    return parts[0], parts[1]


def _rows(source: DemonstrationSource) -> Iterator[Row | Rejection]:
    for file in source_files(source.path, source.format):
        yield from read_file(file, source.columns)


def _check_source(source: DemonstrationSource) -> None:
    for file in source_files(source.path, source.format):
        check_columns(file, source.columns)


def _chat(row: Row, source: DemonstrationSource) -> Chat:
    """Prompts in the normal form that curate gives them, answers as they were written."""
    if source.prompt_field is not None and source.response_field is not None:
        prompt = normal_text(present(row, source.prompt_field), source.prompt_field)
        answer = written_text(present(row, source.response_field), source.response_field)
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    else:
        field = source.columns[0]
        chat = [_checked_turn(turn, field) for turn in checked_turns(present(row, field), field)]
        roles = [turn["role"] for turn in chat]
        if [role for role in roles if role != "system"][:1] != ["user"]:
            raise UnusableField("not_beginning_with_user", field, roles, "a chat whose first turn is the user's")
        if roles[-1] != "assistant":
            raise UnusableField("not_ending_with_assistant", field, roles, "a chat whose last turn is the assistant's")
    if source.system is not None and chat[0]["role"] != "system":
        chat.insert(0, {"role": "system", "content": normalise_text(source.system)})
    return chat


def _checked_turn(turn: dict[str, Any], field: str) -> dict[str, str]:
    checked = written_text if turn["role"] == "assistant" else normal_text
    return {"role": turn["role"], "content": checked(turn.get("content"), field)}


def _turn(chat: Chat, field: str, tokens: Tokens, prompt_id: str) -> Demonstration:
    """The chat up to an assistant turn, of which that turn alone is taught."""
    try:
        prompt = render(tokens.tokenizer, chat[:-1])
        whole = list(tokens.tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False))
    except TemplateError as error:
        raise UnusableField("template_refuses", field, str(error), "a chat that the chat template takes") from None
    if whole[: len(prompt)] != prompt:
        raise UnusableField("template_differs", field, chat[-1]["content"], "an answer that goes on from the prompt")
    ends = [place for place, token in enumerate(whole) if token in tokens.stops and place >= len(prompt)]
    if not ends:
        raise UnusableField("no_end_of_turn", field, chat[-1]["content"], "a chat template that ends turns")
    token_ids = np.array(whole[: ends[-1] + 1], dtype=np.int32)
    return Demonstration(prompt_id, token_ids, np.arange(len(token_ids)) >= len(prompt))


def _demonstration_of_text(text: str, field: str, tokens: Tokens) -> Demonstration:
    """Plain text with the tokenizer's own special tokens and the end token; all but the first token is taught."""
    ids = tokens.tokenizer(text)["input_ids"]
    end = tokens.tokenizer.eos_token_id
    token_ids = np.array(ids if ids[-1:] == [end] else [*ids, end], dtype=np.int32)
    if len(token_ids) < 2:
        raise UnusableField("empty", field, text, "at least two tokens")
    return Demonstration(digest(text), token_ids, np.arange(len(token_ids)) > 0)


def _begins(start: TokenIds, whole: TokenIds) -> bool:
    return len(start) <= len(whole) and bool((whole[: len(start)] == start).all())
