"""The rules that drop rollouts: each measures a value on every rollout and compares it with a threshold.

A rule sees one row per rollout: `group_id`, `reward` (null unless complete), `complete`, `finish_reason`,
`components` (the graders' scores by name).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import polars as pl

from tasks.filtering.config import RuleConfig

KEPT = "kept"
INCOMPLETE = "incomplete"
TRAINED = "trained"


class Rule(NamedTuple):
    """What is measured, when it drops the rollout, and the threshold where the configuration names none.

    A value may depend on a grader: it is made from its name.
    """

    value: Callable[[str], pl.Expr]
    drops: Callable[[pl.Expr, pl.Expr], pl.Expr]
    threshold: float | None = None


def _flag(condition: pl.Expr) -> pl.Expr:
    return condition.fill_null(False).cast(pl.Float64)


def _score_of(grader: str) -> pl.Expr:
    """The grader's score, 0 where it gave none: without a vote there is no majority to belong to."""
    of_grader = pl.element().filter(pl.element().struct.field("name") == grader).struct.field("value")
    return pl.col("components").list.eval(of_grader).list.first().fill_null(0.0)


def _rank(reward: pl.Expr) -> pl.Expr:
    """1 for the group's best reward, the first of equal ones before the others; null without a reward."""
    return reward.rank("ordinal", descending=True).over("group_id").cast(pl.Float64)


RULES: dict[str, Rule] = {
    # Without every grader's answer there is no reward to compare.
    INCOMPLETE: Rule(lambda _: _flag(~pl.col("complete").fill_null(False)), lambda value, _: value > 0),
    # All samples of a group equally good: every advantage is 0 (SkyRL's tolerance).
    "no_variance": Rule(
        lambda _: pl.col("reward").std(ddof=0).over("group_id"), lambda value, most: value <= most, 1e-6
    ),
    # The engine gave up: the text is no answer of the policy.
    "aborted": Rule(lambda _: _flag(pl.col("finish_reason") == "abort"), lambda value, _: value > 0),
    # Cut by the length limit (DAPO's overlong filtering).
    "truncated": Rule(lambda _: _flag(pl.col("finish_reason") == "length"), lambda value, _: value > 0),
    # Not the answer that most samples of the prompt give: training on self-consistency, without a reference.
    "majority_only": Rule(_score_of, lambda value, least: value < least, 0.5),
    # Best of n: all but the best of a group.
    "best_only": Rule(lambda _: _rank(pl.col("reward")), lambda value, kept: value > kept, 1.0),
}


def apply_rules(rollouts: pl.LazyFrame, rules: Sequence[RuleConfig]) -> pl.LazyFrame:
    """The rows with `kept`, and the `rule`, `value` and `threshold` of the first rule that drops each.

    `incomplete` comes first always. Every rule sees all rows, so a group's baseline doesn't depend on the others.
    """
    chosen = [RULES[INCOMPLETE], *(RULES[config.rule] for config in rules)]
    names = [INCOMPLETE, *(config.rule for config in rules)]
    thresholds = [None, *(RULES[c.rule].threshold if c.threshold is None else c.threshold for c in rules)]
    graders = ["", *(config.grader for config in rules)]
    measured = rollouts.with_columns(
        rule.value(grader).alias(f"value_{index}")
        for index, (rule, grader) in enumerate(zip(chosen, graders, strict=True))
    )
    decided = measured.with_columns(
        rule.drops(pl.col(f"value_{index}"), pl.lit(threshold, pl.Float64)).fill_null(False).alias(f"drops_{index}")
        for index, (rule, threshold) in enumerate(zip(chosen, thresholds, strict=True))
    )
    first = [pl.when(f"drops_{index}") for index in range(len(chosen))]
    return decided.with_columns(
        pl.coalesce(*(case.then(pl.lit(name)) for case, name in zip(first, names, strict=True)), pl.lit(KEPT)).alias(
            "rule"
        ),
        pl.coalesce(*(case.then(pl.col(f"value_{index}")) for index, case in enumerate(first))).alias("value"),
        pl.coalesce(
            *(case.then(pl.lit(threshold, pl.Float64)) for case, threshold in zip(first, thresholds, strict=True))
        ).alias("threshold"),
    ).with_columns((pl.col("rule") == KEPT).alias("kept"))
