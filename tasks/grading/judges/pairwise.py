"""Answers to one prompt compared two by two, and the win rates that follow. Pure."""

import math
import random
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from storage.fingerprints import derive_seed, text_key
from tasks.grading.judges.config import JudgeConfig
from tasks.grading.judges.parsing import choice_of, verdict_of
from tasks.grading.judges.prompts import Question, ask, conversation
from tasks.grading.sample import Sample

FIRST, SECOND, TIE = "A", "B", "tie"
TASK = """Two answers to the same prompt: A and B. Say which of them is better as a whole, by what the prompt asks for:
"A", "B", or "tie" when neither is. Their order means nothing, and a longer answer is not better for its length."""


class Tally(NamedTuple):
    """What a sample's comparisons came to. `disagreements` are ties in which the two orders named different answers."""

    wins: int = 0
    ties: int = 0
    losses: int = 0
    disagreements: int = 0
    failed: int = 0

    @property
    def played(self) -> int:
        """Comparisons that have a result."""
        return self.wins + self.ties + self.losses

    @property
    def rate(self) -> float:
        """The win rate, a tie half a win. For a sample that has played."""
        return (self.wins + 0.5 * self.ties) / self.played

    @property
    def uncertainty(self) -> float:
        """Standard deviation of the win rate's posterior under Jeffreys' prior Beta(1/2, 1/2).

        sqrt(a b / ((a + b)^2 (a + b + 1))) with a = wins + ties / 2 + 1/2, b likewise: never 0, as sqrt(p (1 - p) / n)
        would be for a sample that won its only comparison.
        """
        a = self.wins + 0.5 * self.ties + 0.5
        b = self.losses + 0.5 * self.ties + 0.5
        return math.sqrt(a * b / ((a + b) ** 2 * (a + b + 1)))


def meetings(size: int, opponents: int, seed: int) -> list[tuple[int, int]]:
    """Which of `size` samples meet: all pairs, or a ring in seeded order in which each meets `opponents` others.

    One sample meets one more where size and opponents are both odd. No pair comes twice; pairs are (lower, higher).
    """
    if opponents >= size - 1:
        return [(i, j) for i in range(size) for j in range(i + 1, size)]
    order = list(range(size))
    random.Random(seed).shuffle(order)
    places = [(i, (i + step) % size) for step in range(1, opponents // 2 + 1) for i in range(size)]
    if opponents % 2:
        half = size // 2
        places += [(i, i + half) for i in range(size - half)]
    return sorted({(min(order[i], order[j]), max(order[i], order[j])) for i, j in places})


def seed_of(judging: JudgeConfig, prompt_id: str) -> int:
    """The seed of one group's meetings: the same however the samples are ordered."""
    return derive_seed(judging.seed, "pairs", prompt_id)


def pair_question(first: Sample, second: Sample, judging: JudgeConfig, control_tokens: Iterable[str] = ()) -> Question:
    """What the judge is asked with `first` as A."""
    return ask(
        TASK,
        [("prompt", conversation(first.messages)), ("answer A", first.text), ("answer B", second.text)],
        {"why": {"type": "string"}, "better": {"type": "string", "enum": [FIRST, SECOND, TIE]}},
        {"why": "a few sentences", "better": TIE},
        instructions=judging.instructions,
        control_tokens=control_tokens,
    )


def pair_choice(answer: str, question: Question) -> str:
    """A, B or tie. Raises `Unparsable`."""
    return choice_of(verdict_of(answer, question), (FIRST, SECOND, TIE))


def combined(forward: str | None, backward: str | None) -> tuple[float | None, bool]:
    """The first sample's result (1, 0.5, 0; None unless both orders were judged), and whether the orders disagreed.

    `forward` had it as A, `backward` as B. It wins when both say so; anything else but two losses is a tie.
    """
    if forward is None or backward is None:
        return None, False
    for_first = {FIRST: 1.0, SECOND: 0.0, TIE: 0.5}
    one, other = for_first[forward], 1.0 - for_first[backward]
    return (one, False) if one == other else (0.5, True)


Result = tuple[tuple[int, int], float | None, bool]  # a meeting, combined(...)


def tallies(size: int, results: Sequence[Result]) -> list[Tally]:
    """Every sample's tally from the meetings' results, each told for the lower of its pair."""
    counts = [dict.fromkeys(Tally._fields, 0) for _ in range(size)]
    for (i, j), result, disagreed in results:
        for place, own in ((i, result), (j, None if result is None else 1.0 - result)):
            counts[place]["disagreements"] += disagreed
            name = "failed" if own is None else {1.0: "wins", 0.5: "ties", 0.0: "losses"}[own]
            counts[place][name] += 1
    return [Tally(**count) for count in counts]


def pooled(own: Sequence[Tally], texts: Sequence[str]) -> list[Tally]:
    """Every sample's tally, with those of the equal texts in its group added: equal texts have one win rate."""
    sums: dict[str, list[int]] = {}
    for tally, text in zip(own, texts, strict=True):
        sums[text] = [total + count for total, count in zip(sums.get(text, [0] * len(tally)), tally, strict=True)]
    return [Tally(*sums[text]) for text in texts]


def met_by_text(results: Sequence[Result], texts: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """What each text met, for its grade's detail: the other text's key, the result over both orders (1 it won in both,
    0 it lost in both, 0.5 neither), and whether the orders named different answers. Equal texts share what they met.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for (i, j), result, disagreed in results:
        if result is None or texts[i] == texts[j]:
            continue
        for own, other, won in ((texts[i], texts[j], result), (texts[j], texts[i], 1.0 - result)):
            found.setdefault(own, {})[other] = {"other": text_key(other), "result": won, "disagreed": disagreed}
    return {text: list(others.values()) for text, others in found.items()}
