"""What graders say of the rollouts, brought into the rollouts' order: the reward, and what the rules ask for."""

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from storage.errors import InputError
from tasks.filtering.config import FilteringConfig
from tasks.filtering.rules_config import DifficultyBand, Disagreement, RuleConfig, SignalToNoise, Uncertain


class Graded(NamedTuple):
    """The `Reward` rows of the rollouts, and the `Grade` rows behind them where they are at hand."""

    rewards: pl.LazyFrame
    grades: pl.LazyFrame | None = None


def judged(rollout_ids: pl.DataFrame, graded: Graded, config: FilteringConfig) -> pl.DataFrame:
    """Per rollout, in the order of `rollout_ids`: `reward` (null unless complete), `complete`, `passed`, `components`
    where the advantage needs them, `score:GRADER`, `verdict:GRADER` and `uncertainty:GRADER` where a rule does.

    Raises `InputError` for rewards of other rollouts, and where a rule needs grades and there are none.
    """
    scores = {grader for rule in config.rules for grader in rule.scored_by}
    columns: list[pl.Expr | str] = ["rollout_id", "reward", "complete", "passed"]
    columns += [_score_of(grader).alias(f"score:{grader}") for grader in sorted(scores)]
    columns += ["components"] if config.advantage == "per_component" else []
    known = graded.rewards.select(columns).collect()
    joined = _in_order(rollout_ids, known, "reward")
    if len(known) != int(joined["complete"].is_not_null().sum()):
        stranger = known.join(rollout_ids, on="rollout_id", how="anti")["rollout_id"][0]
        raise InputError(f"reward of {stranger}: no such rollout; pass the rewards of these rollouts")
    joined = joined.with_columns(pl.col("complete").fill_null(False))
    said = _said(rollout_ids, graded.grades, config.rules)
    return joined.hstack(said.get_columns()) if said.width else joined


def _score_of(grader: str) -> pl.Expr:
    of_grader = pl.element().filter(pl.element().struct.field("name") == grader).struct.field("value")
    return pl.col("components").list.eval(of_grader).list.first()


def _said(rollout_ids: pl.DataFrame, grades: pl.LazyFrame | None, rules: Sequence[RuleConfig]) -> pl.DataFrame:
    """The columns made of single grades."""
    asking = [rule for rule in rules if rule.reads_grades]
    if not asking:
        return pl.DataFrame()
    if grades is None:
        raise InputError(f"rule {asking[0].kind} reads the graders' grades, and there are none; pass their artifact")
    ok = grades.filter(pl.col("status").cast(pl.String) == "ok")
    wanted = {name: expression for rule in asking for name, expression in _columns_of(rule).items()}
    columns = ok.group_by("rollout_id").agg(expression.alias(name) for name, expression in wanted.items()).collect()
    return _in_order(rollout_ids, columns, "grades")


def _columns_of(rule: RuleConfig) -> dict[str, pl.Expr]:
    grader = pl.col("grader").cast(pl.String)
    if isinstance(rule, Disagreement):
        verdict = pl.col("passed").cast(pl.Float64)
        return {f"verdict:{name}": verdict.filter(grader == name).first() for name in rule.graders}
    if isinstance(rule, DifficultyBand):
        verdict = pl.when(pl.col("passed").is_not_null().any()).then(pl.col("passed").all())
        return {"verdict:": verdict.cast(pl.Float64)}
    if isinstance(rule, Uncertain | SignalToNoise):
        known = pl.col("uncertainty")
        return {
            f"uncertainty:{rule.grader or ''}": (known.filter(grader == rule.grader) if rule.grader else known).max()
        }
    return {}


def graders_pass_rate(grades: pl.LazyFrame) -> float | None:
    """The share of rollouts that every grader which draws a line passed; None where none does."""
    drawn = grades.filter(pl.col("status").cast(pl.String) == "ok", pl.col("passed").is_not_null())
    if drawn.select(pl.col("grader").n_unique()).collect().item() > 1:
        drawn = drawn.group_by("rollout_id").agg(pl.col("passed").all())
    share: float | None = drawn.select(pl.col("passed").mean()).collect(engine="streaming").item()
    return share


def _in_order(rollout_ids: pl.DataFrame, rows: pl.DataFrame, what: str) -> pl.DataFrame:
    """The rows of a frame keyed by `rollout_id` in the rollouts' order, nulls where there is none; without the key."""
    if rollout_ids["rollout_id"].equals(rows["rollout_id"]):
        return rows.drop("rollout_id")
    found = rollout_ids.join(rows, on="rollout_id", how="left", maintain_order="left")
    if len(found) != len(rollout_ids):
        raise InputError(f"several rows of {what} for one rollout; pass each rollout's once")
    return found.drop("rollout_id")
