"""Whom to ask a slow grader about when its budget doesn't reach for all: value per cost, and an audit of the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from storage.fingerprints import derive_seed
from tasks.grading.config import BudgetConfig


class Group(NamedTuple):
    """The samples of a prompt: how many there are, how many would have to be asked, and the fast rewards' variance."""

    prompt_id: str
    samples: int
    unknown: int
    variance: float


class Expected(NamedTuple):
    """What asking about one sample is expected to cost."""

    cost: float = 1.0
    seconds: float = 1.0


@dataclass(frozen=True)
class Choice:
    """Whether a group is asked about, why, and with which probability that was decided (0: never)."""

    asked: bool
    rule: str
    probability: float


ALL, KNOWN, VALUE, AUDIT, REST = "all", "known", "value", "audit", "rest"


def choose(groups: Sequence[Group], budget: BudgetConfig | None, expected: Expected, seed: int) -> dict[str, Choice]:
    """A choice for every group, whole groups only; the budget is never exceeded.

    Groups whose answers are all known are free. Of the others those of the highest value per cost come first: a
    group's value is the variance of its fast rewards (p (1 - p) for pass or fail) times its samples, for that is what
    an answer can change; its cost is what asking about its unknown samples takes of the budget. `audit_fraction` of
    the budget is left for groups drawn uniformly from the rest, so that what the rule neglects is seen too; their
    probability is exact: the number drawn over the number there are.
    """
    choices = {group.prompt_id: Choice(True, KNOWN, 1.0) for group in groups if not group.unknown}
    open_groups = [group for group in groups if group.unknown]
    per_sample = _share_of_budget(budget, expected)
    if budget is None or per_sample == 0:
        return choices | {group.prompt_id: Choice(True, ALL, 1.0) for group in open_groups}
    shares = {group.prompt_id: group.unknown * per_sample for group in open_groups}
    ranked = sorted(open_groups, key=lambda g: (-g.variance * g.samples / shares[g.prompt_id], g.prompt_id))
    left, rest = 1.0, []
    for group in ranked:
        share = shares[group.prompt_id]
        # The best group alone may take what is meant for the audit: a budget of one group is no audit.
        room = left if left == 1.0 else left - budget.audit_fraction
        if group.variance > 0 and share <= room + 1e-12:
            choices[group.prompt_id] = Choice(True, VALUE, 1.0)
            left -= share
        else:
            rest.append(group)
    return choices | _audit(rest, shares, left if budget.audit_fraction else 0.0, seed)


def _share_of_budget(budget: BudgetConfig | None, expected: Expected) -> float:
    """The part of the tightest limit that one sample takes."""
    if budget is None:
        return 0.0
    limits = [(1.0, budget.max_rollouts), (expected.cost, budget.max_cost), (expected.seconds, budget.max_seconds)]
    return max((each / limit for each, limit in limits if limit is not None), default=0.0)


def _audit(rest: Sequence[Group], shares: dict[str, float], left: float, seed: int) -> dict[str, Choice]:
    """As many groups as surely fit, drawn uniformly."""
    if not rest:
        return {}
    largest = max(shares[group.prompt_id] for group in rest)
    count = min(len(rest), int((left + 1e-12) / largest))
    names = sorted(group.prompt_id for group in rest)
    drawn = set(np.random.default_rng(derive_seed(seed, "audit")).permutation(names)[:count].tolist())
    probability = count / len(rest)
    return {name: Choice(name in drawn, AUDIT if name in drawn else REST, probability) for name in names}
