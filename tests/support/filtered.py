"""Rollouts, rewards and grades for tests of the filter, and its decisions without a stage."""

import polars as pl
from pydantic import TypeAdapter

from storage.records import Grade
from tasks.filtering.config import FilteringConfig
from tasks.filtering.graded import Graded
from tasks.filtering.rules_config import RuleConfig
from tasks.filtering.trajectories import decide, ledger_frames, trajectory_frames

COMPONENTS = pl.List(pl.Struct({"name": pl.String, "value": pl.Float64}))
RULE = TypeAdapter(RuleConfig)


def rule(name: str, **options):
    """A rule as a run file writes it."""
    return RULE.validate_python({"rule": name, **options})


def rules(*names: str, **config) -> FilteringConfig:
    """A configuration of rules with their defaults."""
    return FilteringConfig(rules=[{"rule": name} for name in names], **config)


def rollouts_of(
    rows: list[tuple], *, temperature=1.0, texts=None, tokens=None, iteration=3, prefix="r"
) -> pl.DataFrame:
    """Rollouts of (prompt, reward or None, finish_reason)."""
    prompts, _, reasons = zip(*rows, strict=True)
    frame = pl.DataFrame(
        {
            "rollout_id": [f"{prefix}{index:03d}" for index in range(len(rows))],
            "prompt_id": [f"p{prompt}" for prompt in prompts],
            "iteration": iteration,
            "policy_id": "policy",
            "prompt_token_ids": [[1, 2]] * len(rows),
            "token_ids": tokens or [[3, 4, 5]] * len(rows),
            "text": texts or [f"text {index}" for index in range(len(rows))],
            "finish_reason": reasons,
            "sampling": f'{{"temperature": {temperature}, "top_p": 1.0}}',
        }
    ).with_columns(logprobs=pl.col("token_ids").list.eval(pl.element() * 0.0 - 0.1))
    return frame.cast(
        {"prompt_token_ids": pl.List(pl.Int32), "token_ids": pl.List(pl.Int32), "logprobs": pl.List(pl.Float32)}
    )


def rewards_of(rows: list[tuple], prefix="r") -> pl.DataFrame:
    """The rewards of the same."""
    rewards = [reward for _, reward, _ in rows]
    return pl.DataFrame(
        {
            "rollout_id": [f"{prefix}{index:03d}" for index in range(len(rows))],
            "reward": pl.Series(rewards, dtype=pl.Float64),
            "complete": [r is not None for r in rewards],
            "components": [[] if r is None else [{"name": "a", "value": r}] for r in rewards],
            "passed": None,
        },
        schema_overrides={"components": COMPONENTS, "passed": pl.Boolean},
    )


def grades_of(said: dict[str, list[tuple]], prefix="r") -> pl.LazyFrame:
    """Grades of (score, passed, uncertainty) by grader, None for a failed one."""
    rows = []
    for grader, answers in said.items():
        for index, answer in enumerate(answers):
            score, passed, uncertainty = answer or (None, None, None)
            status = "ok" if answer else "failed"
            rows.append((f"{prefix}{index:03d}", grader, "1", status, score, passed, uncertainty, "{}", 0.0, 0.0, "p"))
    return pl.DataFrame(rows, schema=Grade.create_empty().schema, orient="row").lazy()


def decided_of(
    rows: list[tuple], config: FilteringConfig, *, grades=None, rewards=None, earlier=None, iteration=None, **frame
):
    """The decisions on rollouts of (prompt, reward or None, finish_reason)."""
    graded = Graded((rewards_of(rows) if rewards is None else rewards).lazy(), grades)
    return decide([rollouts_of(rows, **frame)], graded, config, earlier=earlier, iteration=iteration)


def ledger_of(decided: pl.DataFrame) -> pl.DataFrame:
    return pl.concat(list(ledger_frames(decided)))


def trained_of(rollouts: pl.DataFrame, decided: pl.DataFrame) -> pl.DataFrame:
    """The trajectories; those of an empty frame where none is kept."""
    from storage.records import Trajectory

    frames = list(trajectory_frames(rollouts.iter_slices(3), decided))
    return pl.concat(frames) if frames else Trajectory.create_empty().select(Trajectory.column_names())
