"""What the tests of the reward model's gate share: preferences of a known split, and checks with a known outcome."""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from graded_rollouts import committed

from storage.artifacts import Artifact, Outputs
from storage.commits import Attempt, Recipe, commit_outputs
from storage.records import RECORDS

PREFERENCES = RECORDS["preferences"].create_empty().schema


def preference_rows(pairs: int, *, split: str = "eval", prefix: str = "p", per_cluster: int = 2) -> pl.DataFrame:
    """Pairs `<prefix>0`, ... of prompts `<prefix>q0`, ... that hold so many pairs each."""
    rows = [
        {
            "pair_id": f"{prefix}{index}",
            "prompt_id": f"{prefix}q{index // per_cluster}",
            "cluster_id": f"{prefix}c{index // per_cluster}",
            "messages": [{"role": "user", "content": "hi"}],
            "chosen": "good",
            "rejected": "bad",
            "source": "grader",
            "strength": 1.0,
            "split": split,
        }
        for index in range(pairs)
    ]
    return pl.DataFrame(rows, schema=PREFERENCES)


def judged(right: list[float], per_cluster: int = 2, prefix: str = "p") -> pl.DataFrame:
    """Held-out pairs with what a reward model made of them."""
    held_out = preference_rows(len(right), per_cluster=per_cluster, prefix=prefix)
    return held_out.select("pair_id", "cluster_id", "prompt_id", pl.Series("right", right, pl.Float64))


def preferences_of(folder, name: str, *frames: pl.DataFrame) -> Artifact:
    """A committed artifact of preferences."""
    return committed(folder, "preferences", name, preferences=pl.concat(frames))


def checked_rows(held_out: pl.DataFrame, right: list[float]) -> pl.DataFrame:
    """The `CheckedPair` frame of held-out pairs."""
    schema = RECORDS["checked_pairs"].create_empty().schema
    known = held_out.select("pair_id", "prompt_id", "cluster_id", pl.col("source").cast(pl.String))
    values = {name: pl.lit(0.0) for name in schema if name not in known.columns and schema[name] == pl.Float64}
    rows = known.with_columns(annotator=pl.lit(None, pl.String), **values)
    return rows.with_columns(right=pl.Series(right, dtype=pl.Float64)).select(list(schema)).cast(dict(schema))


def made(folder: Path, stage: str, name: str, inputs: dict[str, Artifact], **outputs) -> Artifact:
    """An artifact of a stage that was never run, made of these inputs."""
    artifact = Artifact(root=str(folder / "root"), stage=stage, fingerprint=f"{stage}{name}")
    ids = {argument: each.id for argument, each in inputs.items()}
    recipe = Recipe(artifact, step=stage, version=1, config={}, inputs=ids, seed=None)
    commit_outputs(recipe, Attempt(datetime.now(UTC), folder), Outputs(**outputs))
    return artifact
