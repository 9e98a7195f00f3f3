"""A build step for deployments/prefect.yaml: the parameters of a deployment come from a run file."""

from pathlib import Path
from typing import Any

from flows.config import load_config


def run_parameters(file: str) -> dict[str, Any]:
    """The checked configuration in a run file, as `{"config": ...}`, for `{{ id.config }}` in prefect.yaml.

    Raises `InputError` for a file that `posttrain check` would refuse.
    """
    return {"config": load_config(Path(file)).model_dump(mode="json", exclude_unset=True)}
