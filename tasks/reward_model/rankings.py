"""Which pairs of a prompt are one ranking."""

from collections.abc import Sequence


def ranking_of(pairs: Sequence[tuple[int, int]]) -> list[int] | None:
    """The answers, best first, where the pairs (better, worse) leave one order and no other; else None.

    All pairs of a ranking do, and neighbours alone do; a contradiction leaves no order, a gap more than one.
    """
    worse: dict[int, set[int]] = {answer: set() for pair in pairs for answer in pair}
    for better, other in pairs:
        worse[better].add(other)
    unbeaten = {answer: 0 for answer in worse}
    for others in worse.values():
        for other in others:
            unbeaten[other] += 1
    order: list[int] = []
    best = [answer for answer, losses in unbeaten.items() if losses == 0]
    while len(best) == 1:
        (answer,) = best
        order.append(answer)
        best = []
        for other in worse[answer]:
            unbeaten[other] -= 1
            if unbeaten[other] == 0:
                best.append(other)
    return order if len(order) == len(worse) else None
