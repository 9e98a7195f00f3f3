"""Small committed rollouts and batches for the grading stage, and one shard of it run without Prefect."""

import logging
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from storage.artifacts import Artifact, Outputs
from storage.commits import Attempt, Recipe, commit_outputs
from storage.records import RECORDS
from tasks._stage import Shard, StageContext
from tasks.grading import stage as grading

SCHEMAS = {name: RECORDS[name].create_empty().schema for name in ("batch", "rollouts")}


def committed(folder: Path, stage: str, name: str = "0", root: str | None = None, **outputs) -> Artifact:
    """An artifact of a stage that was never run."""
    artifact = Artifact(root=root or str(folder / "root"), stage=stage, fingerprint=f"{stage}{name}")
    recipe = Recipe(artifact, step=stage, version=1, config={}, inputs={}, seed=None)
    commit_outputs(recipe, Attempt(datetime.now(UTC), folder), Outputs(**outputs))
    return artifact


def batch_rows(prompts: int, verifier: str = "haiku", samples: int = 1) -> pl.DataFrame:
    """Prompts p0, p1, ... with that verifier, each with so many samples."""
    rows = [
        {
            "prompt_id": f"p{index}",
            "position": index,
            "samples": samples,
            "messages": [{"role": "user", "content": f"question {index}"}],
            "answer": None,
            "verifier": {"name": verifier, "params": "{}"},
            "domain": "",
            "rubric": None,
            "cluster_id": f"p{index}",
            "split": "train",
        }
        for index in range(prompts)
    ]
    return pl.DataFrame(rows, schema=SCHEMAS["batch"])


def rollout_rows(texts: list[tuple[str, str]], iteration: int = 1, prefix: str = "r") -> pl.DataFrame:
    """Rollouts of (prompt_id, text), called `<prefix>0`, `<prefix>1`, ..."""
    rows = [
        {
            "rollout_id": f"{prefix}{index}",
            "prompt_id": prompt_id,
            "sample_index": index,
            "iteration": iteration,
            "policy_id": f"policy{iteration}",
            "prompt_token_ids": [1, 2],
            "token_ids": [3, 4],
            "logprobs": [-0.5, -0.5],
            "text": text,
            "finish_reason": "stop",
            "engine": "transformers",
            "sampling": '{"temperature": 1.0}',
            "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        }
        for index, (prompt_id, text) in enumerate(texts)
    ]
    return pl.DataFrame(rows, schema=SCHEMAS["rollouts"])


def context(folder: Path, iteration: int = 1) -> StageContext:
    """What a stage function gets from the decorator."""
    return StageContext(folder, logging.getLogger(__name__), lambda done, total, label: None, iteration=iteration)


def grade_shard(rollouts: Artifact, batch: Artifact, config, folder: Path, index: int = 0, count: int = 1) -> Outputs:
    """One shard of the grading stage."""
    return grading.grade.function(
        rollouts=rollouts,
        batch=batch,
        reward_model=None,
        config=config,
        shard=Shard(index, count),
        context=context(folder),
    )
