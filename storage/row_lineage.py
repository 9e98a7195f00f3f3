"""Lineage of rows: a prompt, a rollout or a pair through every table that mentions it.

To learn which artifacts mention an id only the id column is read, straight from the store; what is then shown
is read through `Artifact.scan`, which checks hashes.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import polars as pl

from storage.artifacts import Artifact, Manifest
from storage.errors import CorruptArtifact
from storage.parquet_scan import scan_stored
from storage.store import open_store

READERS = 8
SHOWN_ROLLOUTS = 200
MATCHES = 8
# Stages that make a reward model.
REWARD_MODELS = ("reward_model", "frozen_heads")
Manifests = Mapping[str, Manifest]
Rows = list[dict[str, Any]]
HOLDERS: dict[Any, tuple[str, str]] = {
    "prompt": ("prompts", "prompt_id"),
    "rollout": ("rollouts", "rollout_id"),
    "pair": ("preferences", "pair_id"),
}


def locate(
    root: str, manifests: Manifests, table: str, column: str, value: str, *, prefix: bool = False
) -> dict[str, list[str]]:
    """Artifact id -> the ids in a table's column that equal a value, or begin with it; oldest artifact first."""
    holders = [(name, m) for name, m in sorted(manifests.items(), key=_age) if table in m.tables]
    wanted = pl.col(column).str.starts_with(value) if prefix else pl.col(column) == value

    def search(holder: tuple[str, Manifest]) -> list[str]:
        rows = _unchecked(root, holder[0], holder[1], table).filter(wanted).select(column).unique()
        try:
            found: list[str] = rows.collect(engine="streaming")[column].to_list()
        except (FileNotFoundError, pl.exceptions.PolarsError) as error:
            raise CorruptArtifact(
                f"artifact {holder[0]}, table {table!r}: can't be read ({str(error).splitlines()[0]}). "
                "Restore its files, or make it again with `posttrain rerun ... --force`."
            ) from error
        return [value] if value in found else sorted(found)[:MATCHES]

    with ThreadPoolExecutor(READERS) as pool:
        matches = pool.map(search, holders)
        return {name: found for (name, _), found in zip(holders, matches, strict=True) if found}


def beginning_with(root: str, manifests: Manifests, prefix: str) -> list[str]:
    """A few ids of prompts, rollouts and pairs that begin so: suggestions for an id that isn't known."""
    found: list[str] = []
    for table, column in HOLDERS.values():
        for matches in locate(root, manifests, table, column, prefix, prefix=True).values():
            found += matches[:2]
    return list(dict.fromkeys(found))[:4]


def rollout_sections(root: str, manifests: Manifests, rollout_id: str) -> dict[str, Rows]:
    """A rollout's prompt, policy, grades, reward, ledger entry, place in training, and pairs."""

    def mentions(table: str) -> Rows:
        return _rows(root, manifests, table, "rollout_id", rollout_id)

    rollouts = [_short_rollout(row) for row in mentions("rollouts")]
    trajectories = [_without_tokens(row) for row in mentions("trajectories")]
    return {
        "rollouts": rollouts,
        "prompt": _prompt_rows(root, manifests, {row["prompt_id"] for row in rollouts}),
        "policy": _policies_named(manifests, {row["policy_id"] for row in rollouts}),
        "grades": mentions("grades"),
        "rewards": mentions("rewards"),
        "ledger": mentions("ledger"),
        "trajectories": trajectories,
        "pairs": _pairs_of(root, manifests, rollout_id),
        "policies_trained": _made_of(manifests, {row["artifact"] for row in trajectories}, "policy_update"),
    }


def prompt_sections(root: str, manifests: Manifests, prompt_id: str) -> dict[str, Rows]:
    """A prompt's source row and split, the batches that drew it, and its rollouts (at most 200 of them)."""
    rollouts = _rows(root, manifests, "rollouts", "prompt_id", prompt_id, limit=SHOWN_ROLLOUTS)
    batches = _rows(root, manifests, "batch", "prompt_id", prompt_id)
    return {
        "prompt": _prompt_rows(root, manifests, {prompt_id}),
        "batches": [{key: row[key] for key in ("artifact", "position", "samples")} for row in batches],
        "rollouts": [_short_rollout(row) for row in rollouts],
        "evaluations": _rows(root, manifests, "evaluation", "prompt_id", prompt_id),
        "pairs": _rows(root, manifests, "preferences", "prompt_id", prompt_id, limit=SHOWN_ROLLOUTS),
    }


def pair_sections(root: str, manifests: Manifests, pair_id: str) -> dict[str, Rows]:
    """A pair with its two rollouts and prompt, and the reward models trained on its artifact."""
    pairs = _rows(root, manifests, "preferences", "pair_id", pair_id)
    ids = {row[f"{side}_rollout_id"] for row in pairs for side in ("chosen", "rejected")} - {None}
    rollouts = [row for each in sorted(ids) for row in _rows(root, manifests, "rollouts", "rollout_id", each)]
    read = {row["artifact"] for row in pairs}
    return {
        "pairs": pairs,
        "prompt": _prompt_rows(root, manifests, {row["prompt_id"] for row in pairs}),
        "rollouts": [_short_rollout(row) for row in rollouts],
        "scores": _rows(root, manifests, "scored_pairs", "pair_id", pair_id),
        "checks": _rows(root, manifests, "checked_pairs", "pair_id", pair_id),
        "reward_models_trained": [made for stage in REWARD_MODELS for made in _made_of(manifests, read, stage)],
        "reward_models_judged": _made_of(manifests, {row["artifact"] for row in pairs}, "reward_gate"),
    }


SECTIONS: dict[str, Callable[[str, Manifests, str], dict[str, Rows]]] = {
    "rollout": rollout_sections,
    "prompt": prompt_sections,
    "pair": pair_sections,
}


def _age(item: tuple[str, Manifest]) -> Any:
    return item[1].started_at


def _unchecked(root: str, artifact_id: str, manifest: Manifest, table: str) -> pl.LazyFrame:
    """The table as it lies in the store, for reading one column of it: a check would read all the bytes."""
    store = open_store(root)
    folder = Artifact.at(root, artifact_id).folder
    return scan_stored(store, [f"{folder}/{file.name}" for file in manifest.tables[table].files])


def _rows(root: str, manifests: Manifests, table: str, column: str, value: str, *, limit: int | None = None) -> Rows:
    """The rows of every artifact's table with that id, each with its artifact; read with hashes checked."""
    found: Rows = []
    for artifact_id in locate(root, manifests, table, column, value):
        rows = Artifact.at(root, artifact_id).scan(table).filter(pl.col(column) == value)
        found += [{"artifact": artifact_id, **row} for row in rows.head(limit or 10**9).collect().to_dicts()]
    return found[:limit]


def _prompt_rows(root: str, manifests: Manifests, prompt_ids: Iterable[str]) -> Rows:
    """The prompts themselves: from the pool, or from a batch when no pool holds them any more."""
    found: Rows = []
    for prompt_id in sorted(prompt_ids):
        rows = _rows(root, manifests, "prompts", "prompt_id", prompt_id)
        found += rows or _rows(root, manifests, "batch", "prompt_id", prompt_id)[:1]
    return found


def _policies_named(manifests: Manifests, policy_ids: Iterable[str]) -> Rows:
    by_fingerprint = {manifest.fingerprint: name for name, manifest in manifests.items()}
    return [_made(manifests, by_fingerprint[each]) for each in sorted(policy_ids) if each in by_fingerprint]


def _made_of(manifests: Manifests, sources: set[str], stage: str) -> Rows:
    makers = [name for name, manifest in manifests.items() if sources & set(manifest.inputs.values())]
    return [_made(manifests, name) for name in makers if manifests[name].stage == stage]


def _made(manifests: Manifests, artifact_id: str) -> dict[str, Any]:
    manifest = manifests[artifact_id]
    return {"artifact": artifact_id, "campaign": manifest.campaign, "iteration": manifest.iteration}


def _pairs_of(root: str, manifests: Manifests, rollout_id: str) -> Rows:
    found: Rows = []
    for side in ("chosen", "rejected"):
        rows = _rows(root, manifests, "preferences", f"{side}_rollout_id", rollout_id)
        found += [{"artifact": row["artifact"], "pair_id": row["pair_id"], "side": side, **_pair(row)} for row in rows]
    return found


def _pair(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("source", "strength", "split")}


def _short_rollout(row: dict[str, Any]) -> dict[str, Any]:
    return {**_without_tokens(row), "tokens": len(row["token_ids"])}


def _without_tokens(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("prompt_token_ids", "token_ids", "logprobs")}
