"""Lineage: what any id is, what made it and what it made, answered from manifests and scans of id columns."""

import difflib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from storage import campaigns, row_lineage
from storage.artifacts import MANIFEST, Artifact, Manifest
from storage.errors import CorruptArtifact, InputError
from storage.store import open_store

PREFIX_CHARS = 6
READERS = 16
Kind = Literal["artifact", "prompt", "rollout", "pair", "campaign", "iteration"]
Manifests = Mapping[str, Manifest]
KINDS = (
    f"an artifact (stage/fingerprint, or the first {PREFIX_CHARS} or more digits of its fingerprint), a policy (the "
    "fingerprint of its artifact), a prompt_id, rollout_id or pair_id, a campaign, or an iteration (campaign/number)"
)


class Subject(BaseModel):
    """What an id names, and the artifacts that hold it: for an iteration or a campaign those of its steps."""

    kind: Kind
    id: str
    artifacts: list[str]


class Node(BaseModel):
    """One artifact of a lineage. `missing` when an input's manifest is gone: only its id is known then."""

    id: str
    missing: bool = False
    stage: str
    step: str = ""
    campaign: str | None = None
    iteration: int | None = None
    inputs: dict[str, str] = Field(default_factory=dict, description="argument -> artifact id")
    config: dict[str, Any] | None = Field(default=None, description="only without inputs: it names the sources")
    rows: int = 0
    size_bytes: int = 0
    started_at: datetime | None = None
    duration_s: float = 0.0
    git_commit: str | None = None
    prefect_flow_run_id: str | None = None
    prefect_task_run_id: str | None = None
    mlflow_run_id: str | None = None


class Lineage(BaseModel):
    """The nearest artifacts stand first in `upstream` and `downstream`; the subject's own are in neither.

    `sections` holds rows by topic (for a rollout: prompt, policy, grades, rewards, ledger, trajectories, pairs,
    policies, ...), each with the artifact that it was read from.
    """

    subject: Subject
    upstream: list[str] = Field(default_factory=list)
    downstream: list[str] = Field(default_factory=list)
    nodes: dict[str, Node]
    sections: dict[str, list[dict[str, Any]]] = Field(default_factory=dict)


def read_manifests(root: str, artifact_ids: Iterable[str] | None = None) -> dict[str, Manifest]:
    """The manifests below a root by artifact id, read concurrently; of all artifacts unless ids are given.

    Artifacts without a manifest are left out. Raises `CorruptArtifact` for one that doesn't parse.
    """
    wanted = list_artifacts(root) if artifact_ids is None else sorted(set(artifact_ids))
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda artifact_id: _read_manifest(root, artifact_id), wanted)
        return {artifact_id: manifest for artifact_id, manifest in zip(wanted, found, strict=True) if manifest}


def list_artifacts(root: str) -> list[str]:
    """The ids of all artifacts begun below a root, committed or not."""
    store = open_store(root)
    stages = store.names("artifacts")
    with ThreadPoolExecutor(READERS) as pool:
        fingerprints = pool.map(lambda stage: store.names(f"artifacts/{stage}"), stages)
        return [f"{stage}/{name}" for stage, names in zip(stages, fingerprints, strict=True) for name in names]


def find(root: str, id: str, manifests: Manifests | None = None) -> Subject:
    """What an id names. Raises `InputError` that says which kinds of ids there are, and the nearest known ones."""
    id = id.strip()
    known = read_manifests(root) if manifests is None else manifests
    subject = _artifact(known, id) or _campaign(root, id)
    subject = subject or (_row(root, known, id) if id else None)
    if subject is None:
        raise InputError(_unknown(root, known, id))
    return subject


def lineage(root: str, id: str) -> Lineage:
    """What made the subject of an id, up to the sources, and all that was made of it. Raises `InputError`."""
    manifests = read_manifests(root)
    subject = find(root, id, manifests)
    own = subject.artifacts
    if subject.kind in ("campaign", "iteration"):
        nodes = {artifact_id: _node(manifests, artifact_id) for artifact_id in own}
        return Lineage(subject=subject, nodes=nodes, sections={"iterations": _iterations(root, subject.id)})
    upstream = _closure(own, {name: list(manifest.inputs.values()) for name, manifest in manifests.items()})
    downstream = _closure(own, consumers(manifests))
    nodes = {artifact_id: _node(manifests, artifact_id) for artifact_id in [*own, *upstream, *downstream]}
    sections = {}
    if subject.kind != "artifact":
        sections = row_lineage.SECTIONS[subject.kind](root, manifests, subject.id)
    return Lineage(subject=subject, upstream=upstream, downstream=downstream, nodes=nodes, sections=sections)


def downstream(root: str, artifact_id: str) -> list[str]:
    """Every artifact that was made from this one, nearest first."""
    return _closure([artifact_id], consumers(read_manifests(root)))


def consumers(manifests: Manifests) -> dict[str, list[str]]:
    """Artifact id -> the artifacts that took it as an input, oldest first."""
    taken: dict[str, list[str]] = {}
    for artifact_id, manifest in sorted(manifests.items(), key=lambda item: item[1].started_at):
        for source in dict.fromkeys(manifest.inputs.values()):
            taken.setdefault(source, []).append(artifact_id)
    return taken


def _read_manifest(root: str, artifact_id: str) -> Manifest | None:
    path = f"{Artifact.at(root, artifact_id).folder}/{MANIFEST}"
    store = open_store(root)
    try:
        return Manifest.model_validate_json(store.read(path))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        raise CorruptArtifact(
            f"{store.uri(path)}: not a manifest that this version reads ({'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}). Restore it, or remove its folder and run again."
        ) from error


def _artifact(manifests: Manifests, id: str) -> Subject | None:
    stage, _, prefix = id.rpartition("/")
    if len(prefix) < PREFIX_CHARS:
        return None
    starts = [
        artifact_id
        for artifact_id, manifest in manifests.items()
        if manifest.fingerprint.startswith(prefix) and stage in ("", manifest.stage)
    ]
    if len(starts) > 1:
        raise InputError(f"id {id!r} begins {len(starts)} fingerprints: {', '.join(starts[:6])}. Give more digits.")
    return Subject(kind="artifact", id=starts[0], artifacts=starts) if starts else None


def _campaign(root: str, id: str) -> Subject | None:
    name, _, number = id.partition("/")
    if not name or name not in campaigns.names(root):
        return None
    campaign = campaigns.Campaign(root, name)
    if not number:
        states = [campaign.state(iteration) for iteration in campaign.iterations()]
        steps = list(dict.fromkeys(artifact_id for state in states for artifact_id in state.steps.values()))
        return Subject(kind="campaign", id=name, artifacts=steps)
    if not number.isdigit():
        raise InputError(f"id {id!r}: expected {name}/<iteration>, one of {campaign.iterations()}")
    steps = list(dict.fromkeys(campaign.state(int(number)).steps.values()))
    return Subject(kind="iteration", id=f"{name}/{int(number)}", artifacts=steps)


def _row(root: str, manifests: Manifests, id: str) -> Subject | None:
    for kind, (table, column) in row_lineage.HOLDERS.items():
        found = row_lineage.locate(root, manifests, table, column, id, prefix=len(id) >= PREFIX_CHARS)
        values = sorted({value for matches in found.values() for value in matches})
        if id in values:
            values = [id]
        if len(values) > 1:
            raise InputError(f"id {id!r} begins several of {column}: {', '.join(values[:6])}. Give more of it.")
        if values:
            holders = [artifact_id for artifact_id, matches in found.items() if values[0] in matches]
            return Subject(kind=kind, id=values[0], artifacts=holders)
    return None


def _iterations(root: str, id: str) -> list[dict[str, Any]]:
    name, _, number = id.partition("/")
    campaign = campaigns.Campaign(root, name)
    wanted = [int(number)] if number else campaign.iterations()
    return [campaign.state(iteration).model_dump(mode="json") for iteration in wanted]


def _closure(start: list[str], neighbours: Mapping[str, list[str]]) -> list[str]:
    """Everything reachable, breadth first, without the start."""
    seen, reached, frontier = set(start), [], list(start)
    while frontier:
        beyond = []
        for artifact_id in frontier:
            for neighbour in neighbours.get(artifact_id, []):
                if neighbour not in seen:
                    seen.add(neighbour)
                    beyond.append(neighbour)
        reached += beyond
        frontier = beyond
    return reached


def _node(manifests: Manifests, artifact_id: str) -> Node:
    manifest = manifests.get(artifact_id)
    if manifest is None:
        return Node(id=artifact_id, stage=artifact_id.partition("/")[0], missing=True)
    copied = manifest.model_dump(include=set(Node.model_fields) - {"config"})
    config = None if manifest.inputs else manifest.config
    return Node(id=artifact_id, rows=manifest.rows, size_bytes=manifest.size_bytes, config=config, **copied)


def _unknown(root: str, manifests: Manifests, id: str) -> str:
    fingerprints = {manifest.fingerprint: artifact_id for artifact_id, manifest in manifests.items()}
    candidates = [*fingerprints, *manifests, *campaigns.names(root)]
    near = [fingerprints.get(match, match) for match in difflib.get_close_matches(id, candidates, n=3, cutoff=0.5)]
    if len(id) >= PREFIX_CHARS:
        near += row_lineage.beginning_with(root, manifests, id[: PREFIX_CHARS - 2])
    hint = f"Nearest: {', '.join(dict.fromkeys(near))}." if near else f"{len(manifests)} artifacts there, none near it."
    return f"id {id!r}: unknown below {root}. {hint} An id is {KINDS}."
