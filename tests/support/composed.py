"""What the tests of composites share: grades and rollouts from a few numbers, and their rewards."""

import polars as pl

from storage.records import Reward
from tasks.grading.composite import composite
from tasks.grading.config import GraderConfig, GradingConfig

A, B = GraderConfig(grader="number", name="a", weight=3), GraderConfig(grader="number", name="b", weight=1)
NAMES = ("a", "b")


def frames(rows: list[dict], names: tuple[str, ...] = NAMES) -> tuple[pl.LazyFrame, pl.LazyFrame]:
    """Grades and rollouts of rows such as {"a": 0.5, "b": None, "group": 0, "tokens": 3, "domain": "code"}."""
    grades = [
        {
            "rollout_id": f"r{index:06d}",
            "grader": name,
            "status": "ok" if row.get(name) is not None else "pending",
            "score": row.get(name),
            "passed": row.get(f"{name}_passed"),
            "detail": row.get(f"{name}_detail", "{}"),
        }
        for index, row in enumerate(rows)
        for name in names
    ]
    facts = [
        {
            "rollout_id": f"r{index:06d}",
            "group_id": f"p{row.get('group', 0)}",
            "tokens": row.get("tokens", 1),
            "domain": row.get("domain", ""),
        }
        for index, row in enumerate(rows)
    ]
    schema = {"score": pl.Float64, "passed": pl.Boolean}
    return pl.DataFrame(grades, schema_overrides=schema).lazy(), pl.DataFrame(facts).lazy()


def rewarded(rows: list[dict], *graders: GraderConfig, **composite_options) -> pl.DataFrame:
    graders = graders or (A, B)
    config = GradingConfig(graders=list(graders), composite=composite_options)
    grades, facts = frames(rows, tuple(grader.label for grader in graders))
    found = composite(grades, config.graders, config.composite, facts)
    assert Reward.is_valid(found)
    return found


def parts(found: pl.DataFrame) -> list[dict[str, float]]:
    return [{part["name"]: part["value"] for part in row} for row in found["components"].to_list()]
