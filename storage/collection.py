"""Garbage: files below a root that no manifest names, older than anything that may still be at work."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import fsspec
from pydantic import ValidationError

from storage.artifacts import MANIFEST, FileEntry, Manifest
from storage.grade_cache import FOLDER as GRADE_CACHE
from storage.store import open_store

MIN_AGE_S = 24 * 3600.0
READERS = 16
TEMPORARY = re.compile(r"\.(.+\.|probe-)[0-9a-f]{32}")
SHARD = re.compile(r"_shard-[0-9a-f]+-\d+\.json")


@dataclass(frozen=True)
class Garbage:
    """One file that can go: its path below the root, and why."""

    path: str
    size_bytes: int
    age_s: float
    reason: str


@dataclass(frozen=True)
class _StoredFile:
    path: str
    size_bytes: int
    modified: float

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def plan(root: str, min_age_s: float = MIN_AGE_S) -> list[Garbage]:
    """The files that `collect` would remove, by path.

    Everything that a manifest names stays, and so do the shards of a stage that isn't committed yet: a later run
    takes them up. A folder with a manifest that doesn't parse stays whole. Nothing younger than `min_age_s` is
    listed, so that a stage at work loses nothing. Raises `InputError`, `StoreUnreachable`.
    """
    open_store(root).names("artifacts")
    # Files are listed before manifests are read: what is committed in between is then found named.
    files = list(_files(root))
    named = _named(root, files)
    now = time.time()
    garbage = []
    for file in files:
        reason = _reason(file, named)
        age_s = now - file.modified
        if reason and age_s >= min_age_s:
            garbage.append(Garbage(file.path, file.size_bytes, age_s, reason))
    return sorted(garbage, key=lambda each: each.path)


def collect(root: str, min_age_s: float = MIN_AGE_S) -> list[Garbage]:
    """Remove what `plan` lists; returns what was removed."""
    store, garbage = open_store(root), plan(root, min_age_s)
    with ThreadPoolExecutor(READERS) as pool:
        for _ in pool.map(store.remove, [each.path for each in garbage]):
            pass
    return garbage


@dataclass(frozen=True)
class _Named:
    """What one artifact's folder must keep; `None` for names: everything."""

    names: frozenset[str] | None
    committed: bool


def _files(root: str) -> Iterator[_StoredFile]:
    """Files of artifacts, campaigns and kept grades, and what lies at the root itself, with their times."""
    store = open_store(root)
    filesystem, base = fsspec.url_to_fs(store.root, **({} if store.is_local else {"use_listings_cache": False}))
    found: dict[str, Any] = {}
    for folder in ("artifacts", "campaigns", GRADE_CACHE):
        found |= filesystem.find(f"{base}/{folder}", detail=True)
    if filesystem.isdir(base):
        found |= {entry["name"]: entry for entry in filesystem.ls(base, detail=True) if entry["type"] == "file"}
    for name, entry in found.items():
        yield _StoredFile(str(name)[len(base) + 1 :], int(entry["size"]), _modified(entry))


def _modified(entry: dict[str, Any]) -> float:
    """Seconds since 1970, from a local folder's listing or from S3's."""
    moment = entry.get("mtime", entry.get("LastModified"))
    return moment.timestamp() if isinstance(moment, datetime) else float(moment or time.time())


def _named(root: str, files: list[_StoredFile]) -> dict[str, _Named]:
    """Artifact folder -> the names that its manifest holds, or those of its shards while there is none."""
    names: dict[str, set[str]] = {}
    for file in files:
        if file.path.startswith("artifacts/"):
            names.setdefault(file.folder, set()).add(file.name)
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(names, pool.map(lambda folder: _kept(root, folder, names[folder]), names), strict=True))


def _kept(root: str, folder: str, names: set[str]) -> _Named:
    committed = _manifest(root, f"{folder}/{MANIFEST}")
    shards = sorted(name for name in names if SHARD.fullmatch(name))
    if committed is None and MANIFEST in names:
        return _Named(None, committed=True)
    if committed is not None:
        return _Named(frozenset({MANIFEST, *_file_names(committed)}), committed=True)
    kept: set[str] = set()
    for shard in shards:
        part = _manifest(root, f"{folder}/{shard}")
        if part is None:
            return _Named(None, committed=False)
        kept |= {shard, *_file_names(part)}
    return _Named(frozenset(kept), committed=False)


def _manifest(root: str, path: str) -> Manifest | None:
    try:
        return Manifest.model_validate_json(open_store(root).read(path))
    except (FileNotFoundError, ValidationError):
        return None


def _file_names(manifest: Manifest) -> Iterator[str]:
    entries: list[FileEntry] = [*manifest.files.values()]
    for table in manifest.tables.values():
        entries += table.files
    return (entry.name for entry in entries)


def _reason(file: _StoredFile, named: dict[str, _Named]) -> str | None:
    """Why a file can go, or None."""
    if TEMPORARY.fullmatch(file.name):
        return "left by a write that was cut off"
    if not file.path.startswith("artifacts/") or file.path.count("/") != 3:
        return None
    keep = named[file.folder]
    if keep.names is None or file.name in keep.names:
        return None
    if SHARD.fullmatch(file.name):
        return "shard of a stage that is committed"
    return "not named by the manifest" if keep.committed else "left by an attempt that never committed"
