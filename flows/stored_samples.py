"""Stored outputs as the samples that graders see: an artifact of rollouts, or a file of prompts and completions."""

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from storage.artifacts import MANIFEST, Artifact
from storage.errors import InputError
from storage.fingerprints import digest
from storage.lineage import find
from tasks._sources.files import SourceFile, source_files
from tasks._sources.reading import columns_of, read_file
from tasks._sources.rows import Rejection
from tasks.grading.config import PROMPT_VERIFIER, GraderConfig
from tasks.grading.sample import Sample
from tasks.grading.samples import SAMPLE_COLUMNS, samples_of

ROLLOUT_COLUMNS = {"rollout_id", "prompt_id", "text"}
USED_COLUMNS = ROLLOUT_COLUMNS | {"policy_id", "finish_reason", "token_ids", "rubric", "domain", "verifier"}
ROLES = {"role", "content"}


class Columns(NamedTuple):
    """How a file calls what a grader needs. `prompt` is a text or a list of messages; `answer` may be missing."""

    prompt: str = "prompt"
    completion: str = "completion"
    answer: str = "answer"


def stored_samples(
    given: str, root: str, columns: Columns, grader: GraderConfig, rows: int | None
) -> tuple[list[Sample], str | None]:
    """The first `rows` samples (None: all) of a file or of an artifact below `root`, and what is missing, in a line.

    A Parquet file inside an artifact stands for the artifact: its batch has the prompts. Raises `InputError` for what
    isn't there, isn't readable, or lacks a column.
    """
    artifact = _artifact(given, root)
    if artifact is not None:
        return _of_artifact(artifact, grader, rows), None
    samples: list[Sample] = []
    bare = False
    for file in source_files(given):
        for number, row in _rows(file, columns, None if rows is None else rows - len(samples)):
            bare = columns.completion not in row and set(row) >= ROLLOUT_COLUMNS
            where = f"{file.name}:{number}"
            samples.append(_of_rollout(row, where, grader) if bare else _of_row(row, where, columns, grader))
    missing = "rollouts without their prompts: graders see an empty one; name the artifact, with --root, to have them"
    return samples, missing if bare else None


def _artifact(given: str, root: str) -> Artifact | None:
    path = Path(given)
    if not path.exists():
        if "://" in given or path.suffix or any(character in given for character in "*?["):
            return None
        subject = find(root, given)
        if subject.kind != "artifact":
            raise InputError(f"{given!r} is a {subject.kind}, not an artifact; give a file or an artifact of rollouts")
        return Artifact.at(root, subject.id)
    folder = path.absolute() if path.is_dir() else path.absolute().parent
    if not (folder / MANIFEST).exists() or folder.parent.parent.name != "artifacts":
        return None
    return Artifact.at(str(folder.parents[2]), f"{folder.parent.name}/{folder.name}")


def _of_artifact(artifact: Artifact, grader: GraderConfig, rows: int | None) -> list[Sample]:
    sampled = artifact.scan("rollouts").select(SAMPLE_COLUMNS)
    batch = artifact.manifest.inputs.get("batch")
    if batch is None:
        raise InputError(f"artifact {artifact.id} names no batch that it was made from; give an artifact of rollouts")
    frame: pl.DataFrame = (sampled if rows is None else sampled.head(rows)).collect()
    return list(samples_of(frame, Artifact.at(artifact.root, batch).read("batch"), grader))


def _rows(file: SourceFile, columns: Columns, rows: int | None) -> Iterator[tuple[int, Mapping[str, Any]]]:
    present = columns_of(file)
    used = [name for name in present if name in USED_COLUMNS or name in columns]
    if present and not used:
        raise InputError(f"{file.name}: has none of the columns {', '.join(columns)}; it has {', '.join(present)}")
    for row in islice(read_file(file, used), rows):
        if isinstance(row, Rejection):
            raise InputError(str(row))
        yield row.row, row.fields


def _of_rollout(row: Mapping[str, Any], where: str, grader: GraderConfig) -> Sample:
    if grader.grader == PROMPT_VERIFIER:
        raise InputError(
            f"{where}: rollouts without their prompts have no verifiers; name one, such as --grader number"
        )
    return _sample(row, [], _text(row, "text", where), None, grader, row["prompt_id"], row["rollout_id"])


def _of_row(row: Mapping[str, Any], where: str, columns: Columns, grader: GraderConfig) -> Sample:
    for name, option in ((columns.prompt, "--prompt-column"), (columns.completion, "--completion-column")):
        if row.get(name) is None:
            raise InputError(f"{where}: no column {name!r}; it has {', '.join(row)}; name another by {option}")
    prompt, answer = row[columns.prompt], row.get(columns.answer)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, list) or not all(isinstance(each, dict) and set(each) >= ROLES for each in messages):
        raise InputError(f"{where}: column {columns.prompt!r} holds neither a text nor a list of {{role, content}}")
    text = _text(row, columns.completion, where)
    answer = answer if answer is None or isinstance(answer, str) else json.dumps(answer)
    prompt_id = digest([messages, answer, row.get("rubric"), row.get("domain"), row.get("verifier")])
    return _sample(row, messages, text, answer, grader, prompt_id, where)


def _sample(
    row: Mapping[str, Any],
    messages: list[dict[str, str]],
    text: str,
    answer: str | None,
    grader: GraderConfig,
    prompt_id: str,
    rollout_id: str,
) -> Sample:
    """Without token ids, tokens are counted as words."""
    verifier, params = grader.grader, dict(grader.params)
    if verifier == PROMPT_VERIFIER:
        own = row.get("verifier")
        if not isinstance(own, dict) or "name" not in own:
            raise InputError(f"{rollout_id}: has no column `verifier` of name and params; name one: --grader number")
        parsed = own.get("params") or {}
        verifier, params = own["name"], (json.loads(parsed) if isinstance(parsed, str) else parsed) | params
    token_ids, rubric, domain = row.get("token_ids"), row.get("rubric"), row.get("domain")
    return Sample(
        rollout_id=rollout_id,
        prompt_id=prompt_id,
        policy_id=str(row.get("policy_id") or "stored"),
        messages=messages,
        text=text,
        tokens=len(text.split()) if token_ids is None else len(token_ids),
        truncated=row.get("finish_reason") == "length",
        answer=answer,
        rubric=rubric,
        domain=str(domain or ""),
        verifier=verifier,
        params=params,
    )


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    text = row[column]
    if not isinstance(text, str):
        raise InputError(f"{where}: column {column!r} holds {type(text).__name__}, expected a text")
    return text
