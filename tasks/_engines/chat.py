"""Chat messages to the token ids that an engine and a trainer both read."""

import functools
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from storage.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# transformers puts another module in its own place while it's imported: a second thread finds the first one, empty.
_importing = threading.Lock()


@functools.lru_cache(maxsize=8)
def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder, loaded once a process. Raises InputError when the folder has none."""
    with _importing:
        from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").is_file():
        raise InputError(
            f"{folder}: no tokenizer (tokenizer_config.json is missing); save one with the model's weights"
        )
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def render(tokenizer: "PreTrainedTokenizerBase", messages: Iterable[Mapping[str, str]]) -> list[int]:
    """Token ids of a chat, ending where the assistant's answer begins. Raises InputError without a chat template."""
    if not tokenizer.chat_template:
        raise InputError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template, so messages can't be turned into a prompt; "
            "add chat_template.jinja to the model's folder"
        )
    chat = [dict(message) for message in messages]
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False))


def stop_token_ids(model: Path, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Every token that ends a completion: the tokenizer's end of turn and what the model's own files name."""
    stops = {tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        if (model / name).is_file():
            named = json.loads((model / name).read_text()).get("eos_token_id")
            stops.update(named if isinstance(named, list) else [named])
    return sorted(stop for stop in stops if stop is not None)


def decode(tokenizer: "PreTrainedTokenizerBase", completions: Sequence[Sequence[int]]) -> list[str]:
    """The completions' texts, special tokens left out."""
    return tokenizer.batch_decode([list(ids) for ids in completions], skip_special_tokens=True)
