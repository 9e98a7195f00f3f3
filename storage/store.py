"""One root, a local folder or `s3://bucket/prefix`: bytes in, bytes out, and the conditional put.

Credentials and the endpoint of S3 come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
`AWS_ENDPOINT_URL`, ...), never from a run file.
"""

import errno
import functools
import logging
import os
import random
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

import fsspec
import polars as pl
import pyarrow.parquet as pq
from fsspec.spec import AbstractFileSystem

from storage.errors import InputError, StageFailed, StoreUnreachable

P = ParamSpec("P")
R = TypeVar("R")
LOG = logging.getLogger(__name__)
S3_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
PAUSES_S = (1, 2, 4, 8, 16)
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60


def check_root(root: str) -> None:
    """`Store.check` before work starts, where a store that is away is bad input. Raises `InputError`."""
    try:
        open_store(root).check()
    except StoreUnreachable as error:
        raise InputError(str(error)) from error


def check_reachable(root: str) -> None:
    """Raise `InputError` at once for a root that can't be read; nothing is written."""
    try:
        open_store(root).reach()
    except StoreUnreachable as error:
        raise InputError(str(error)) from error


def _patient(method: Callable[P, R]) -> Callable[P, R]:
    """Name the errors of a method, and try it again while a remote store can't be reached, for about half a minute."""
    named = _named_errors(method)

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        for pause_s in PAUSES_S:
            try:
                return named(*args, **kwargs)
            except StoreUnreachable as error:
                LOG.warning("%s Trying again in %d s.", error, pause_s)
                time.sleep(pause_s * random.uniform(0.5, 1.5))
        return named(*args, **kwargs)

    return wrapped


def _named_errors(method: Callable[P, R]) -> Callable[P, R]:
    """Turn what fsspec and botocore raise into errors that say what to do."""

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        store = args[0]
        assert isinstance(store, Store)
        try:
            return method(*args, **kwargs)
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            named = _named(store, error)
            if named is error:
                raise
            raise named from error

    return wrapped


def _named(store: "Store", error: Exception) -> Exception:
    """The error of ours for one of fsspec's or botocore's; the same error when it isn't the store's."""
    if isinstance(error, PermissionError):
        return InputError(
            f"{store.root}: the store refuses access ({error}). Check the credentials "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or the folder's permissions."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StageFailed(f"{store.root}: no space left. Free some (`posttrain gc`), then run again.")
    if isinstance(error, OSError) and not store.is_local:
        return StoreUnreachable(_unreachable(store.root, error))
    if type(error).__module__.split(".")[0] in ("botocore", "aiobotocore", "aiohttp"):
        return _named_botocore_error(store.root, error)
    return error


def _unreachable(root: str, error: Exception) -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "the default AWS endpoint")
    return f"{root}: the store can't be reached at {endpoint} ({error}). Is it up, and is AWS_ENDPOINT_URL right?"


def _named_botocore_error(root: str, error: Exception) -> Exception:
    name = type(error).__name__
    if "Credential" in name:
        return InputError(f"{root}: no S3 credentials ({error}). Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")
    if name in ("ParamValidationError", "InvalidEndpoint"):
        return InputError(f"{root}: {error}. Expected s3://bucket/prefix.")
    return StoreUnreachable(_unreachable(root, error))


class Store:
    """Reads and writes below one root. Paths are relative to it, with forward slashes."""

    def __init__(self, root: str) -> None:
        self.is_local = "://" not in root or root.startswith("file://")
        if self.is_local:
            self.root = str(Path(root.removeprefix("file://")).absolute())
            self._fs: AbstractFileSystem = fsspec.filesystem("file")
            self._base = self.root
        elif root.startswith("s3://") and root.removeprefix("s3://").strip("/"):
            self.root = root.rstrip("/")
            self._base = self.root.removeprefix("s3://")
            self._fs = _s3_filesystem(tuple(os.environ.get(name) for name in S3_VARIABLES))
        else:
            raise InputError(f"root {root!r}: expected a folder or s3://bucket/prefix")

    def _full(self, path: str) -> str:
        return f"{self._base}/{path}"

    def uri(self, path: str) -> str:
        """The address of a path, as other programs take it."""
        return f"{self.root}/{path}"

    @_named_errors
    def check(self) -> None:
        """Put and remove a probe. Raises `InputError` or `StoreUnreachable` for a root that can't be written.

        Raises `InputError` too for a store without conditional puts: two runners could both commit an iteration.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            if self.is_local:
                Path(self._base).mkdir(parents=True, exist_ok=True)
            first, second = self._create(probe, b"1"), self._create(probe, b"2")
            self._fs.rm_file(self._full(probe))
        except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
            what = "a folder can't be made there" if self.is_local else "there is no such bucket; create it"
            raise InputError(f"root {self.root}: {what} ({error})") from error
        if not first or second:
            raise InputError(
                f"root {self.root}: the store ignores conditional puts (If-None-Match); use one that has them"
            )

    @_named_errors
    def reach(self) -> None:
        """List the root once, without patience. Raises `StoreUnreachable`, or `InputError` when access is refused."""
        self._fs.exists(self._base)

    @_patient
    def read(self, path: str) -> bytes:
        """The bytes at a path. Raises `FileNotFoundError`."""
        return bytes(self._fs.cat_file(self._full(path)))

    @_patient
    def exists(self, path: str) -> bool:
        """Whether there is a file at the path, asked of the store and not of a listing cache."""
        self._fs.invalidate_cache(self._fs._parent(self._full(path)))
        return bool(self._fs.isfile(self._full(path)))

    @_patient
    def names(self, folder: str) -> list[str]:
        """The names right below a folder, sorted; none when it doesn't exist."""
        self._fs.invalidate_cache(self._full(folder))
        try:
            return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in self._fs.ls(self._full(folder), False))
        except FileNotFoundError:
            return []

    @_patient
    def walk(self, folder: str) -> Iterator[tuple[str, int]]:
        """Every file below a folder: its path relative to the root, and its size in bytes."""
        self._fs.invalidate_cache()
        found = self._fs.find(self._full(folder), detail=True)
        return iter([(str(name)[len(self._base) + 1 :], int(entry["size"])) for name, entry in found.items()])

    @_patient
    def write(self, path: str, content: bytes) -> None:
        """Put bytes, whole or not at all, over what was there."""
        if not self.is_local:
            self._fs.pipe_file(self._full(path), content)
            return
        temporary = self._temporary(path, content)
        temporary.replace(self._full(path))

    @_patient
    def create(self, path: str, content: bytes) -> bool:
        """Put bytes unless the path exists; of two writers one gets True. S3: `If-None-Match: *`."""
        return self._create(path, content)

    def _create(self, path: str, content: bytes) -> bool:
        if self.is_local:
            temporary = self._temporary(path, content)
            try:
                os.link(temporary, self._full(path))
                _sync_folder(temporary.parent)
            except FileExistsError:
                return False
            finally:
                temporary.unlink()
            return True
        try:
            self._fs.pipe_file(self._full(path), content, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # 412: somebody's is there. It may be ours, when a put was retried after a lost answer.
            return bytes(self._fs.cat_file(self._full(path))) == content
        return True

    @_patient
    def put_file(self, source: Path, path: str) -> None:
        """Move a finished local file into the store; the source is gone afterwards."""
        if self.is_local:
            target = Path(self._full(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
            shutil.move(source, temporary)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(target)
        else:
            self._fs.put_file(str(source), self._full(path))
            source.unlink()

    @_patient
    def fetch(self, path: str, target: Path) -> None:
        """Copy a stored file to a local path, whole or not at all."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        self._fs.get_file(self._full(path), str(temporary))
        temporary.replace(target)

    @_patient
    def read_columns(self, path: str, columns: list[str]) -> pl.DataFrame:
        """Some columns of a Parquet file, without fetching the others."""
        with self._fs.open(self._full(path), "rb") as file:
            return pl.DataFrame(pl.from_arrow(pq.read_table(file, columns=columns)))

    def local_path(self, path: str) -> Path | None:
        """Where the file lies on this machine, if the root is local."""
        return Path(self._full(path)) if self.is_local else None

    @_patient
    def remove(self, path: str) -> None:
        """Remove one file; nothing happens when it is gone already."""
        try:
            self._fs.rm_file(self._full(path))
        except FileNotFoundError:
            return

    def _temporary(self, path: str, content: bytes) -> Path:
        target = Path(self._full(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary


def _sync_folder(folder: Path) -> None:
    """Write a folder's entries to the disk: a file is only as durable as its name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@functools.lru_cache(maxsize=8)
def _s3_filesystem(settings: tuple[str | None, ...]) -> AbstractFileSystem:
    """One connection pool per endpoint and credentials, in the order of `S3_VARIABLES`."""
    endpoint_url, key, secret, token = settings
    return fsspec.filesystem(
        "s3",
        endpoint_url=endpoint_url,
        key=key,
        secret=secret,
        token=token,
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"max_attempts": 3, "mode": "standard"},
        },
    )


@functools.lru_cache(maxsize=32)
def open_store(root: str) -> Store:
    """The store at a root, one per process."""
    return Store(root)
