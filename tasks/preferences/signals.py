"""What many people did -> one opinion: votes on an answer, clicks on one answer beside another. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from storage.fingerprints import digest
from tasks.preferences.layouts import Answered, Compared


def by_votes(votes: Iterable[Answered], min_votes: int) -> Iterator[tuple[str, Answered]]:
    """Each distinct answer to each prompt, its score the share of its votes that are up; with a name for its prompt.

    In the order of the first votes; answers with fewer votes than `min_votes` are left out.
    """
    found: dict[tuple[str, str], list[Answered]] = {}
    for vote in votes:
        found.setdefault((digest(vote.messages), vote.text), []).append(vote)
    for (prompt, _), own in found.items():
        if len(own) >= min_votes:
            share = sum(vote.score for vote in own) / len(own)
            names = {vote.annotator for vote in own}
            yield prompt, replace(own[0], score=share, annotator=names.pop() if len(names) == 1 else None)


def netted(pairs: Iterable[Compared]) -> list[Compared]:
    """Each two texts once for each annotator, the one that was clicked more often first.

    `strength` is that of one click times the difference of clicks; where it is 0 the pair falls. `detail` counts both.
    """
    found: dict[tuple[str, str, str, str | None], list[Compared]] = {}
    for pair in pairs:
        low, high = sorted((pair.chosen, pair.rejected))
        found.setdefault((digest(pair.messages), low, high, pair.annotator), []).append(pair)
    kept = []
    for own in found.values():
        same = sum(pair.chosen == own[0].chosen for pair in own)
        for_it, against = max(same, len(own) - same), min(same, len(own) - same)
        if for_it == against:
            continue
        first = next(pair for pair in own if (pair.chosen == own[0].chosen) == (same == for_it))
        strength = None if first.strength is None else first.strength * (for_it - against)
        kept.append(replace(first, strength=strength, detail={"clicks": for_it, "clicks_against": against}))
    return kept
