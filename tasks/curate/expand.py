"""Self-instruct: a model is shown prompts and writes more of them; what is new is kept (Wang et al. 2023, section 2.2).

Pure but for `ask`, which stands for the model: the same seeds, configuration, seed and answers give the same prompts.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import polars as pl

from storage.errors import InputError
from storage.fingerprints import derive_seed
from storage.records import ExpandedPrompt
from tasks._sources.fields import normalise_text
from tasks._sources.rows import Rejection, excerpt
from tasks.curate.config import ExpansionConfig
from tasks.curate.expand_config import ExpandConfig
from tasks.curate.normalise import prompt_of_row
from tasks.curate.novelty import Novelty, words_of
from tasks.curate.sources import read_source

ITEM = re.compile(r"(\d{1,4})[.)]\s+(\S.*)")
ANY = 1e-9  # a floor below every similarity of two texts that share a word


class Seed(NamedTuple):
    """A prompt to learn from, and where it came from."""

    text: str
    source: str


class Written(NamedTuple):
    """What the model answered to one request; `finish_reason` as an engine gives it."""

    text: str
    finish_reason: str


Ask = Callable[[Sequence[str], int], Sequence[Written]]
"""Requests and a seed -> an answer each."""


class Expansion(NamedTuple):
    """What came of it: the `ExpandedPrompt` frame, what was set aside and why, and how often the model was asked."""

    kept: pl.DataFrame
    rejected: list[Rejection]
    requests: int


def seeds_of(config: ExpansionConfig, seed: int) -> list[Seed]:
    """The prompts of the sources that have a single turn, each text once. Raises `InputError` when there is none."""
    found: dict[str, Seed] = {}
    for source in config.sources:
        for row in read_source(source, seed):
            prompt = row if isinstance(row, Rejection) else prompt_of_row(row, source)
            if isinstance(prompt, Rejection):
                continue  # the pool says so: it reads the same sources
            turns = [turn["content"] for turn in prompt["messages"] if turn["role"] != "system"]
            if len(turns) == 1:
                found.setdefault(turns[0], Seed(turns[0], prompt["source"]))
    if not found:
        raise InputError("expand: its seed sources hold no prompt of a single turn; name others in expand.seeds")
    return list(found.values())


def expand(seeds: Sequence[Seed], config: ExpandConfig, policy_id: str, seed: int, ask: Ask) -> Expansion:
    """Rounds of requests until `config.prompts` new prompts are there, or `config.max_rounds` are over.

    Raises `InputError` when every seed is too long to be shown, and when not one new prompt came of it.
    """
    work = _Work(seeds, config, policy_id)
    for number in range(config.max_rounds):
        draw = random.Random(derive_seed(seed, "expand", number))
        shown = [work.examples(draw) for _ in range(config.requests_per_round)]
        answers = ask([work.request(examples) for examples in shown], derive_seed(seed, "expand-sampling", number))
        for request, (examples, answer) in enumerate(zip(shown, answers, strict=True)):
            work.take(answer, examples, number, request)
        if len(work.kept) == config.prompts:
            break
    asked = (number + 1) * config.requests_per_round
    if not work.kept:
        reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(r.reason for r in work.rejected).items())
        raise InputError(
            f"expand: {asked} requests gave no new prompt ({reasons}), such as {work.rejected[0]}; let a larger model "
            "write, or change expand.instruction"
        )
    schema = {name: column.dtype for name, column in ExpandedPrompt.columns().items()}
    return Expansion(pl.DataFrame(work.kept, schema=schema), work.rejected, asked)


def listed(text: str, first_numbers: tuple[int, ...]) -> tuple[list[str], str | None]:
    """The items of a numbered list, one a line, and the line at which it stops being one (None: nowhere).

    It begins with one of `first_numbers` and counts on by one. A line before it that ends in a colon is passed over.
    """
    items: list[str] = []
    expected = first_numbers
    for line in filter(None, map(str.strip, text.splitlines())):
        found = ITEM.fullmatch(line)
        if found is None and not items and expected == first_numbers and line.endswith(":"):
            expected = (*first_numbers, first_numbers[0])  # one such line, no more
            continue
        if found is None or int(found[1]) not in expected:
            return items, line
        items.append(normalise_text(found[2]))
        expected = (int(found[1]) + 1,)
    return items, None if items else ""


class _Work:
    """What is kept so far, and what the next request and the next candidate are measured by."""

    def __init__(self, seeds: Sequence[Seed], config: ExpandConfig, policy_id: str) -> None:
        self.config, self.policy_id = config, policy_id
        self.kept: list[dict[str, Any]] = []
        self.rejected: list[Rejection] = []
        self._known = list(seeds)
        self._novelty = Novelty()
        for one in seeds:
            self._novelty.add(one.text)
        self._shown = [one for one in seeds if len(words_of(one.text)) <= config.max_words]
        if not self._shown:
            raise InputError(f"expand: all {len(seeds)} seeds have more than max_words ({config.max_words}) words")
        self._new: list[Seed] = []

    def examples(self, draw: random.Random) -> list[Seed]:
        """The seeds and the kept prompts that a request shows, in a drawn order."""
        new = min(self.config.shown_new, self.config.shown - 1, len(self._new))
        old = min(self.config.shown - new, len(self._shown))
        chosen = draw.sample(self._shown, old) + draw.sample(self._new, new)
        draw.shuffle(chosen)
        return chosen

    def request(self, examples: Sequence[Seed]) -> str:
        """What the model is told."""
        lines = [f"{number}. {' '.join(one.text.split())}" for number, one in enumerate(examples, start=1)]
        return self.config.instruction.format(examples="\n".join(lines), shown=len(lines), asked=self.config.asked)

    def take(self, answer: Written, examples: Sequence[Seed], number: int, request: int) -> None:
        """Keep what is new of an answer, until there is enough; set the rest aside with its reason."""
        place = f"expand/round-{number}/request-{request}"
        items, broken = listed(answer.text, (1, len(examples) + 1))
        if answer.finish_reason == "length" and items:
            items, last = items[:-1], items[-1]
            self._reject(place, len(items) + 1, "cut_off", last, "an item that max_tokens doesn't cut")
        elif broken is not None:
            expected = f"line {len(items) + 1} of a numbered list"
            self._reject(place, len(items) + 1, "not_a_list", broken or answer.text, expected)
        for item, text in enumerate(items, start=1):
            if len(self.kept) == self.config.prompts:
                return
            nearest = self._novelty.nearest(text, ANY)
            if self._usable(text, nearest, place, item):
                self._keep(text, nearest, examples, (number, request, item))

    def _usable(self, text: str, nearest: tuple[int, float] | None, place: str, item: int) -> bool:
        words, low, high = len(words_of(text)), self.config.min_words, self.config.max_words
        if not low <= words <= high:
            self._reject(place, item, "too_short" if words < low else "too_long", text, f"{low} to {high} words")
            return False
        if nearest is not None and nearest[1] >= self.config.max_similarity:
            found = f"ROUGE-L {nearest[1]:.2f} with {self._known[nearest[0]].source}: {excerpt(text)}"
            self.rejected.append(Rejection(place, item, "not_new", None, found, f"below {self.config.max_similarity}"))
            return False
        return True

    def _keep(
        self,
        text: str,
        nearest: tuple[int, float] | None,
        examples: Sequence[Seed],
        where: tuple[int, int, int],
    ) -> None:
        position = len(self.kept)
        self.kept.append(
            {
                "position": position,
                "text": text,
                "policy_id": self.policy_id,
                "seeds": [one.source for one in examples],
                "round": where[0],
                "request": where[1],
                "item": where[2],
                "similarity": nearest[1] if nearest else 0.0,
                "nearest": self._known[nearest[0]].source if nearest else None,
            }
        )
        own = Seed(text, f"expand:{position + 1}")
        self._known.append(own)
        self._new.append(own)
        self._novelty.add(text)

    def _reject(self, place: str, item: int, reason: str, found: str, expected: str) -> None:
        self.rejected.append(Rejection(place, item, reason, None, excerpt(found), expected))
