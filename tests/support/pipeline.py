"""What the tests of whole runs share: a small run file, the command line in a process of its own, comparisons."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import warm
import yaml

from storage.artifacts import Manifest
from storage.store import open_store

REPOSITORY = Path(__file__).parents[2]
TIMEOUT_S = 480


def run_file(folder: Path, model: Path, **changes) -> Path:
    """A campaign of two iterations with a tiny model: every stage does its real job, in seconds."""
    document = {
        "campaign": "tiny",
        "iterations": 2,
        "model": {"path": str(model)},
        "curate": {
            "sources": [{"generator": "haiku", "params": {"topics": "deployments/quickstart-topics.txt", "limit": 40}}],
            "eval_prompts": 8,
        },
        "select": {"prompts_per_iteration": 8, "samples_per_prompt": 4},
        "rollouts": {
            "rows_per_shard": 16,
            "sampling": {"max_tokens": 12},
            "engine": {"name": "transformers", "max_model_len": 256},
        },
        "grading": {
            "graders": [
                # A machine that is busy with other tests loads a dictionary in more than the usual ten seconds.
                {"grader": "verifier", "weight": 0.8, "timeout_s": 120},
                {"grader": "reward_model", "weight": 0.2, "from_iteration": 2},
            ]
        },
        "preferences": {"min_margin": 0.01},
        "reward_model": {"min_pairs": 2},
        "reward_gate": {"first": "always"},
        "policy_update": {"max_tokens": 12},
        "evaluation": {"select": {"samples_per_prompt": 2}},
        **changes,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@functools.cache
def empty_tracking() -> bytes:
    """An MLflow database without a run. Its tables take MLflow seconds; a copy has them at once."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder, "mlflow.db")
        MlflowClient(f"sqlite:///{database}").search_experiments()
        return database.read_bytes()


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a run with a home of its own; for a run, MLflow has its tables there."""
    if "PREFECT_API_URL" in more and "MLFLOW_TRACKING_URI" not in more and not (home / "mlflow.db").exists():
        home.mkdir(parents=True, exist_ok=True)
        (home / "mlflow.db").write_bytes(empty_tracking())
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "POSTTRAIN_HOME": str(home), "COLUMNS": "200", **more}


def start(
    *arguments: str,
    env: dict[str, str],
    folder: Path = REPOSITORY,
    output: Any = subprocess.PIPE,
    fresh: bool = False,
) -> warm.Command | subprocess.Popen:
    """`posttrain` with these arguments, running. Whoever doesn't read the pipe gives a file as `output`.

    Forked from a process that has the libraries; `fresh`, in an interpreter that has nothing yet.
    """
    if not fresh:
        return warm.fork(arguments, env=env, folder=folder, output=output)
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.Popen(command, cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT, text=True)


def posttrain(
    *arguments: str, env: dict[str, str], code: int = 0, folder: Path = REPOSITORY, fresh: bool = False
) -> str:
    """`posttrain` with these arguments; its output, after the expected exit code."""
    process = start(*arguments, env=env, folder=folder, fresh=fresh)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code, f"exit code {process.returncode}, expected {code}:\n{output[-6000:]}"
    return output


def manifests(root: str) -> dict[str, Manifest]:
    """Every committed artifact below a root."""
    store = open_store(root)
    found = {}
    for path, _ in store.walk("artifacts"):
        if path.endswith("/_manifest.json"):
            manifest = Manifest.model_validate_json(store.read(path))
            found[f"{manifest.stage}/{manifest.fingerprint}"] = manifest
    return found


def contents(root: str) -> dict[str, str]:
    """Artifact id -> digest of all that it holds."""
    return {artifact_id: manifest.content for artifact_id, manifest in manifests(root).items()}


def states(root: str, campaign: str = "tiny") -> dict[str, dict]:
    """The committed states, without what differs between launches."""
    store = open_store(root)
    found = {}
    for name in store.names(f"campaigns/{campaign}/iterations"):
        state = json.loads(store.read(f"campaigns/{campaign}/iterations/{name}"))
        for clock in ("launch_id", "committed_at", "mlflow_run_id"):
            state.pop(clock)
        found[name] = state
    return found
