"""The rules that drop rollouts, as a table, and their application in the order of the configuration.

A rule measures a value on every rollout that it sees and compares it with a threshold; the ledger keeps both. It may
also weigh what stays. A rule never sees a rollout without a complete reward: that is dropped before all rules.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from tasks.filtering import group_rules, output_rules, rollout_rules
from tasks.filtering.evidence import Evidence, Finding, Groups
from tasks.filtering.features import Feature
from tasks.filtering.rules_config import RuleConfig

KEPT = "kept"
INCOMPLETE = "incomplete"
TRAINED = "trained"


class Rule(NamedTuple):
    """What it finds among the rollouts that it sees, and the features of outputs that it reads."""

    find: Callable[[Evidence, Any], Finding]
    features: Callable[[Any], dict[str, Feature]] = lambda _: {}


RULES: dict[str, Rule] = {
    # How a rollout ended, its age, what its graders say.
    "aborted": Rule(rollout_rules.aborted),
    "truncated": Rule(rollout_rules.truncated),
    "stale": Rule(rollout_rules.stale),
    "majority_only": Rule(rollout_rules.majority_only),
    "disagreement": Rule(rollout_rules.disagreement),
    "uncertain": Rule(rollout_rules.uncertain),
    # What it says.
    "redundant_in_group": Rule(output_rules.redundant_in_group, output_rules.signature_of),
    "redundant_across": Rule(output_rules.redundant_across, output_rules.likeness_of),
    "repetition": Rule(output_rules.repetition, output_rules.repeated_of),
    "wrong_language": Rule(output_rules.wrong_language, output_rules.spoken_of),
    # Its group's rewards.
    "no_variance": Rule(group_rules.no_variance),
    "difficulty_band": Rule(group_rules.difficulty_band),
    "max_variance": Rule(group_rules.max_variance),
    "best_only": Rule(group_rules.best_only),
    "signal_to_noise": Rule(group_rules.signal_to_noise),
    "oversample": Rule(group_rules.oversample),
}


def features_of(rules: Sequence[RuleConfig]) -> dict[str, Feature]:
    """The features that the rules read, each once."""
    return {name: feature for rule in rules for name, feature in RULES[rule.kind].features(rule).items()}


def apply_rules(evidence: Evidence, rules: Sequence[RuleConfig]) -> pl.DataFrame:
    """For every row of the evidence `rule` (that drops it first, or kept), its `value` and `threshold` (null where it
    is kept or nothing was compared), and the `weight` with which it trains.

    Every rule sees all rows unless it `sees` those alone that no earlier rule dropped.
    """
    fell = np.zeros(len(evidence), dtype=np.uint8)
    value, threshold = np.full(len(evidence), np.nan), np.full(len(evidence), np.nan)
    counted, tilted = np.ones(len(evidence)), np.ones(len(evidence))
    for number, rule in enumerate(rules, start=1):
        seen = np.flatnonzero(fell == 0) if rule.sees == "kept" else np.arange(len(evidence))
        looked_at = evidence.rows(seen)
        found = RULES[rule.kind].find(looked_at, rule)
        if rule.scope == "group":
            found = _with_their_groups(found, looked_at.groups)
        new = found.drops & (fell[seen] == 0)
        fell[seen[new]], value[seen[new]] = number, found.value[new]
        threshold[seen[new]] = np.broadcast_to(found.threshold, len(seen))[new]
        if found.weight is not None:
            into = tilted if rule.kind == "oversample" else counted
            into[seen] *= found.weight
    names = pl.Enum(list(dict.fromkeys([KEPT, *(rule.kind for rule in rules)])))
    by_number = pl.Series([KEPT, *(rule.kind for rule in rules)], dtype=names)
    return pl.DataFrame(
        {
            "rule": by_number[fell],
            "value": pl.Series(value, nan_to_null=True),
            "threshold": pl.Series(threshold, nan_to_null=True),
            "weight": counted * tilted / _mean_weight(counted, tilted, fell == 0),
        }
    )


def _mean_weight(counted: np.ndarray, tilted: np.ndarray, kept: np.ndarray) -> float:
    """The mean of the oversampling factors over the rollouts that the kept ones stand for: it is divided out."""
    stands_for = counted[kept].sum()
    return float((counted[kept] * tilted[kept]).sum() / stands_for) if stands_for else 1.0


def _with_their_groups(found: Finding, groups: Groups) -> Finding:
    """The finding, every rollout of a group falling with the group's first that falls, at the value of that one."""
    rows = np.flatnonzero(found.drops)[::-1]
    first = np.full(int(groups.max(initial=-1)) + 1, -1)
    first[groups[rows]] = rows
    culprit = first[groups]
    falls = culprit >= 0
    at = np.where(found.drops | ~falls, np.arange(len(groups)), culprit)
    return Finding(found.value[at], falls, np.broadcast_to(found.threshold, len(groups))[at], found.weight)
