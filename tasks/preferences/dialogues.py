"""Whole dialogues that begin alike: what both share is the prompt, what follows are the two answers. Pure."""

import re
from typing import Any

from tasks._sources.fields import UnusableField, normal_text

Chat = list[dict[str, Any]]
# Anthropic's HH-RLHF: turns begin with their speaker, after an empty line.
SPEAKER = re.compile(r"\n\n(Human|Assistant):")
ROLE = {"Human": "user", "Assistant": "assistant"}
NAME = {"user": "Human", "assistant": "Assistant", "system": "System"}


def turns_of_dialogue(text: str, field: str) -> Chat:
    """The turns of `\\n\\nHuman: ...\\n\\nAssistant: ...`, those of one speaker in a row joined.

    Raises `UnusableField` for a text that doesn't begin with a speaker or doesn't end with the assistant.
    """
    before, *parts = SPEAKER.split("\n\n" + text.lstrip())
    turns: Chat = []
    for speaker, said in zip(parts[0::2], parts[1::2], strict=True):
        role, content = ROLE[speaker], said.strip()
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{content}".strip()
        else:
            turns.append({"role": role, "content": content})
    if before.strip() or not turns or turns[-1]["role"] != "assistant":
        raise UnusableField(
            "not_a_dialogue", field, text, "a dialogue of Human and Assistant that ends with the latter"
        )
    return turns


def part_chats(first: Chat, second: Chat, field: str) -> tuple[Chat, Any, Any]:
    """The turns that both chats begin with, up to a user's, in curate's normal form; and what follows in each.

    Where more than one turn follows, the chats parted before their last turn: the answer is then the rest of the
    dialogue, written as HH-RLHF writes it. Raises `UnusableField` for chats that don't begin alike.
    """
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] == second[shared]:
        shared += 1
    shared = min(shared, len(first) - 1, len(second) - 1)
    while shared and first[shared - 1]["role"] != "user":
        shared -= 1
    if not shared:
        raise UnusableField("different_prompts", field, first[0]["content"], "two chats that begin with the same turns")
    prompt = [{"role": turn["role"], "content": normal_text(turn["content"], field)} for turn in first[:shared]]
    return prompt, _rest(first[shared:]), _rest(second[shared:])


def _rest(turns: Chat) -> Any:
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join([turns[0]["content"], *(f"{NAME[turn['role']]}: {turn['content']}" for turn in turns[1:])])
