"""Grading rollouts with verifiers, pure. A verifier that fails on a row leaves a failed row: never a zero."""

import functools
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import polars as pl

from storage.errors import InputError, PosttrainError
from storage.records import Grade
from tasks.grading.config import PROMPT_VERIFIER, GraderConfig
from tasks.grading.verdict import Verdict
from tasks.grading.verifiers import resolve_verifier

log = logging.getLogger(__name__)
GRADED_COLUMNS = ["rollout_id", "prompt_id", "policy_id", "text", "finish_reason"]
PROGRESS_ROWS = 1000


def grade_rollouts(
    rollouts: pl.DataFrame,
    batch: pl.DataFrame,
    grader: GraderConfig,
    progress: Callable[[int, int, str], None] | None = None,
) -> pl.DataFrame:
    """The `Grade` frame of one verifier grader over the rollouts, in their order.

    `batch` holds the answer and the verifier of each prompt. Raises `InputError` for an unknown verifier, wrong
    parameters, or a rollout whose prompt is not in the batch.
    """
    prompts = {row["prompt_id"]: row for row in batch.select("prompt_id", "answer", "verifier").to_dicts()}
    graded = []
    for done, rollout in enumerate(rollouts.select(GRADED_COLUMNS).iter_rows(named=True)):
        prompt = prompts.get(rollout["prompt_id"])
        if prompt is None:
            raise InputError(
                f"rollout {rollout['rollout_id']}: its prompt {rollout['prompt_id']} is not in the batch; "
                "grade with the batch that it was made from"
            )
        graded.append(_grade_row(rollout, prompt, grader))
        if progress is not None and done % PROGRESS_ROWS == 0:
            progress(done, len(rollouts), f"rollouts, {grader.label}")
    return pl.DataFrame(graded, schema=Grade.create_empty().schema, orient="row")


def _grade_row(rollout: dict[str, Any], prompt: dict[str, Any], grader: GraderConfig) -> dict[str, Any]:
    name, params = _verifier_and_params(prompt["verifier"], grader)
    verifier = resolve_verifier(name)
    started = time.perf_counter()
    grade: dict[str, Any] = {"status": "ok", "score": None, "passed": None}
    try:
        verdict = verifier.function(rollout["text"], prompt["answer"], params)
        grade |= _checked(verdict, truncated=rollout["finish_reason"] == "length", factor=grader.truncated_factor)
    except PosttrainError:
        raise
    except Exception as error:
        # The boundary at which somebody else's code fails: its row says so, the others are graded.
        log.debug("verifier %s failed on rollout %s", name, rollout["rollout_id"], exc_info=True)
        grade |= {"status": "failed", "detail": json.dumps({"error": f"{type(error).__name__}: {error}"})}
    return {
        "rollout_id": rollout["rollout_id"],
        "grader": grader.label,
        "grader_version": f"{name}/{verifier.version}",
        "uncertainty": None,
        "latency_s": time.perf_counter() - started,
        "policy_id": rollout["policy_id"],
        **grade,
    }


def _verifier_and_params(verifier: dict[str, str], grader: GraderConfig) -> tuple[str, dict[str, Any]]:
    if grader.grader != PROMPT_VERIFIER:
        return grader.grader, grader.params
    return verifier["name"], {**_parsed(verifier["params"]), **grader.params}


@functools.lru_cache(maxsize=4096)
def _parsed(params: str) -> dict[str, Any]:
    return json.loads(params or "{}")


def _checked(verdict: Verdict, *, truncated: bool, factor: float) -> dict[str, Any]:
    """The verdict as columns of a grade. Raises `ValueError` for a score outside [0, 1]."""
    score = float(verdict.score)
    if not 0 <= score <= 1:
        raise ValueError(f"the score is {score}, expected 0 to 1")
    detail = verdict.detail | {"truncated": True} if truncated else verdict.detail
    return {
        "score": score * factor if truncated else score,
        "passed": False if truncated and verdict.passed is not None else verdict.passed,
        "detail": json.dumps(detail),
    }
