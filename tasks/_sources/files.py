"""Which files a source's path means, and their content digests. Local paths and everything fsspec knows."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Literal

import fsspec
from fsspec import AbstractFileSystem

from storage.errors import InputError, StoreUnreachable

Format = Literal["parquet", "jsonl", "arrow", "csv", "text"]
FormatOrAuto = Literal["auto", "parquet", "jsonl", "arrow", "csv", "text"]
ENDINGS: dict[str, Format] = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".json": "jsonl",
    ".json.gz": "jsonl",
    ".ndjson": "jsonl",
    ".arrow": "arrow",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "csv",
    ".tsv.gz": "csv",
}
# Texts are read where the source's format says so: beside data such files are notes.
TEXT_ENDINGS = (".txt", ".md")
BLOCK_BYTES = 1 << 20
S3_ENVIRONMENT = {
    "endpoint_url": "AWS_ENDPOINT_URL",
    "key": "AWS_ACCESS_KEY_ID",
    "secret": "AWS_SECRET_ACCESS_KEY",
    "token": "AWS_SESSION_TOKEN",
}
S3_CLIENT = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 3, "mode": "standard"}}


@dataclass(frozen=True)
class SourceFile:
    """One file of a source; `name` is how messages and provenance call it."""

    name: str
    path: str
    filesystem: AbstractFileSystem
    format: Format

    def open(self) -> IO[bytes]:
        """The file's bytes, decompressed when its name ends in .gz."""
        compression = "gzip" if self.path.endswith(".gz") else None
        with store_errors(self.name):
            return self.filesystem.open(self.path, "rb", compression=compression)


@contextmanager
def store_errors(name: str) -> Iterator[None]:
    """Turns what a file system raises into our errors: `InputError`, or `StoreUnreachable` for the network."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file; check the source's path (relative to the current folder)") from error
    except PermissionError as error:
        raise InputError(f"{name}: not allowed to read it: {error}; check permissions or credentials") from error
    except (ConnectionError, TimeoutError) as error:
        raise StoreUnreachable(f"{name}: the store can't be reached: {error}") from error
    except OSError as error:
        raise InputError(f"{name}: can't be read: {error}") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("botocore", "aiobotocore", "aiohttp"):
            raise
        if "Credential" in type(error).__name__:
            raise InputError(f"{name}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
        raise StoreUnreachable(f"{name}: the store can't be reached: {error}; check AWS_ENDPOINT_URL") from error


def locate(path: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a local path or URL, and the path within it. S3's credentials are the environment's."""
    options: dict[str, Any] = {}
    if path.startswith("s3://"):
        options = {option: os.environ.get(name) for option, name in S3_ENVIRONMENT.items()}
        options |= {"use_listings_cache": False, "config_kwargs": S3_CLIENT}
    filesystem, inner = fsspec.core.url_to_fs(path, **options)
    return filesystem, inner


def source_files(given: str, file_format: FormatOrAuto = "auto") -> list[SourceFile]:
    """The files that a source's path means, in a fixed order; format `auto` goes by their endings.

    A folder is searched for files with a known ending (format `text`: .txt and .md); what `datasets` saved gives the
    files that its `state.json` names. Raises `InputError` when nothing is there or a format can't be told.
    """
    endings = TEXT_ENDINGS if file_format == "text" else tuple(ENDINGS)
    with store_errors(given):
        filesystem, path = locate(given)
        paths = _expand(filesystem, path, given, endings)
    if not paths:
        raise InputError(f"{given}: found no file; expected a file, folder or glob of {', '.join(endings)}")
    return [_source_file(filesystem, found, _name(given, path, found), file_format) for found in paths]


def file_digest(filesystem: AbstractFileSystem, path: str, name: str) -> str:
    """A digest of one file's content: the store's ETag where it has one, else BLAKE2 of the bytes."""
    with store_errors(name):
        etag = filesystem.info(path).get("ETag")
        if etag:
            return "etag:" + str(etag).strip('"')
        digest = hashlib.blake2b(digest_size=16)
        with filesystem.open(path, "rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
    return "blake2:" + digest.hexdigest()


def file_digests(given: str, file_format: FormatOrAuto = "auto") -> list[str]:
    """The digests of the files that a source's path means, in their order, without their paths."""
    return [file_digest(file.filesystem, file.path, file.name) for file in source_files(given, file_format)]


def _expand(filesystem: AbstractFileSystem, path: str, given: str, endings: tuple[str, ...]) -> list[str]:
    if any(character in path for character in "*?["):
        return sorted(filesystem.glob(path))
    if not filesystem.isdir(path):
        return [path] if filesystem.exists(path) else _missing(given)
    if filesystem.exists(f"{path}/dataset_dict.json"):
        splits = json.loads(filesystem.cat_file(f"{path}/dataset_dict.json"))["splits"]
        raise InputError(f"{given}: a DatasetDict with the splits {splits}; name one of them: {given}/{splits[0]}")
    if filesystem.exists(f"{path}/state.json"):
        state = json.loads(filesystem.cat_file(f"{path}/state.json"))
        return [f"{path}/{part['filename']}" for part in state["_data_files"]]
    return sorted(found for found in filesystem.find(path) if found.endswith(endings))


def _missing(given: str) -> list[str]:
    raise InputError(f"{given}: no such file or folder; check the source's path (relative to the current folder)")


def _source_file(filesystem: AbstractFileSystem, path: str, name: str, file_format: FormatOrAuto) -> SourceFile:
    if file_format != "auto":
        return SourceFile(name, path, filesystem, file_format)
    for ending, known in ENDINGS.items():
        if path.endswith(ending):
            return SourceFile(name, path, filesystem, known)
    raise InputError(f"{name}: can't tell its format; expected one of {', '.join(ENDINGS)}, or set the source's format")


def _name(given: str, root: str, path: str) -> str:
    if path == root:
        return given
    if path.startswith(root.rstrip("/") + "/"):
        return given.rstrip("/") + path[len(root.rstrip("/")) :]
    folder = given.rsplit("/", 1)[0] if "/" in given else ""
    root_folder = root.rsplit("/", 1)[0]
    if folder and path.startswith(root_folder + "/"):
        return folder + path[len(root_folder) :]
    return path.rsplit("/", 1)[-1]
