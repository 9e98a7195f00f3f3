"""Samples side by side: the same held-out prompts answered by the first policy and by the newest."""

import hashlib
from dataclasses import dataclass

import polars as pl

from storage.artifacts import Artifact

Steps = dict[int, dict[str, Artifact]]
ROLLOUTS, GRADING = "evaluation-rollouts", "evaluation-grading"


@dataclass(frozen=True)
class Answer:
    """One answer; `score` is the evaluation's reward, `parts` each grader's score, None where not graded."""

    text: str
    tokens: int
    truncated: bool
    score: float | None
    parts: list[tuple[str, float]]


@dataclass(frozen=True)
class Sample:
    """One prompt, its expected answer if it has one, and the answers of both policies."""

    prompt_id: str
    messages: list[dict[str, str]]
    expected: str | None
    before: list[Answer]
    after: list[Answer]
    before_iteration: int
    after_iteration: int


def side_by_side(steps: Steps, prompts: int, answers: int) -> list[Sample]:
    """`prompts` held-out prompts that both policies answered, picked by the hash of their ids, not by how they did.

    Empty unless two iterations have rollouts on held-out prompts.
    """
    evaluated = [iteration for iteration, made in steps.items() if ROLLOUTS in made]
    if len(evaluated) < 2 or prompts == 0:
        return []
    first, last = evaluated[0], evaluated[-1]
    chosen = _common(steps[first][ROLLOUTS], steps[last][ROLLOUTS], prompts)
    before, after = (_answers(steps[iteration], chosen, answers) for iteration in (first, last))
    known = _prompts(steps, chosen)
    return [
        Sample(
            prompt_id=prompt_id,
            messages=known.get(prompt_id, ([], None))[0],
            expected=known.get(prompt_id, ([], None))[1],
            before=before[prompt_id],
            after=after[prompt_id],
            before_iteration=first,
            after_iteration=last,
        )
        for prompt_id in chosen
    ]


def _common(first: Artifact, last: Artifact, count: int) -> list[str]:
    ids = [set(each.scan("rollouts").select("prompt_id").unique().collect()["prompt_id"]) for each in (first, last)]
    return sorted(ids[0] & ids[1], key=lambda prompt_id: hashlib.sha256(prompt_id.encode()).digest())[:count]


def _answers(made: dict[str, Artifact], prompt_ids: list[str], count: int) -> dict[str, list[Answer]]:
    rows = (
        made[ROLLOUTS]
        .scan("rollouts")
        .filter(pl.col("prompt_id").is_in(prompt_ids))
        .select(
            "rollout_id", "prompt_id", "sample_index", "text", "finish_reason", tokens=pl.col("token_ids").list.len()
        )
        .collect(engine="streaming")
        .sort("prompt_id", "sample_index")
        .group_by("prompt_id", maintain_order=True)
        .head(count)
    )
    scores = _scores(made.get(GRADING), rows["rollout_id"].to_list())
    found: dict[str, list[Answer]] = {prompt_id: [] for prompt_id in prompt_ids}
    for row in rows.to_dicts():
        score, parts = scores.get(row["rollout_id"], (None, []))
        truncated = row["finish_reason"] == "length"
        found[row["prompt_id"]].append(Answer(row["text"], row["tokens"], truncated, score, parts))
    return found


def _scores(
    grading: Artifact | None, rollout_ids: list[str]
) -> dict[str, tuple[float | None, list[tuple[str, float]]]]:
    if grading is None or "rewards" not in grading.manifest.tables:
        return {}
    rows = grading.scan("rewards").filter(pl.col("rollout_id").is_in(rollout_ids)).collect(engine="streaming")
    return {
        row["rollout_id"]: (row["reward"], [(part["name"], part["value"]) for part in row["components"] or []])
        for row in rows.to_dicts()
    }


def _prompts(steps: Steps, prompt_ids: list[str]) -> dict[str, tuple[list[dict[str, str]], str | None]]:
    """Messages and expected answer of the prompts, from the first pool or batch of the history that holds them."""
    found: dict[str, tuple[list[dict[str, str]], str | None]] = {}
    for made in steps.values():
        for artifact in made.values():
            for table in {"prompts", "batch"} & set(artifact.manifest.tables):
                missing = [prompt_id for prompt_id in prompt_ids if prompt_id not in found]
                if not missing:
                    return found
                rows = artifact.scan(table).filter(pl.col("prompt_id").is_in(missing))
                for row in rows.select("prompt_id", "messages", "answer").collect().to_dicts():
                    found[row["prompt_id"]] = (row["messages"], row["answer"])
    return found
