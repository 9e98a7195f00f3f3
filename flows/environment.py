"""The environment of a run without servers, set before Prefect and MLflow are imported: both read it on import."""

import os
from pathlib import Path

from flows.services.running import Running, addresses
from storage.home import HOME_VARIABLE

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""Nothing calls home, and MLflow's server starts no job runners."""

AWS_IDENTITY = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ROLE_ARN")


def local_settings(home: Path) -> dict[str, str]:
    """What a server and an embedded run share, so that both use the same two databases below `home` (absolute)."""
    prefect = home / "prefect"
    return {
        **QUIET,
        HOME_VARIABLE: str(home),
        "PREFECT_HOME": str(prefect),
        "PREFECT_LOCAL_STORAGE_PATH": str(prefect / "storage"),
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
        # Prefect 3.7 looks for this one in the user's home whatever PREFECT_HOME says.
        "PREFECT_SERVER_MEMO_STORE_PATH": str(prefect / "memo_store.toml"),
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        # Where MLflow's SQLite store puts the artifacts of a new experiment; without it ./mlruns.
        "_MLFLOW_SERVER_ARTIFACT_ROOT": artifact_root(home),
    }


def mlflow_database(home: Path) -> str:
    """The SQLite file that embedded runs and the MLflow server share, as a tracking URI."""
    return f"sqlite:///{home / 'mlflow.db'}"


def artifact_root(home: Path) -> str:
    """Where MLflow keeps plots and reports, with and without its server."""
    return (home / "mlartifacts").as_uri()


def embedded(home: Path) -> None:
    """Set what Prefect, MLflow and the S3 clients read, each only where the user hasn't.

    Services of this home that are alive are used (`posttrain up`); for one that isn't, Prefect starts a temporary
    server over the same database, and MLflow opens its own directly. Call it before importing either.
    """
    home = home.absolute()
    (home / "prefect").mkdir(parents=True, exist_ok=True)
    running = addresses(home)
    settings = local_settings(home) | _prefect(running) | _mlflow(home, running)
    if running and running.s3 and not any(name in os.environ for name in AWS_IDENTITY):
        settings |= running.s3.variables()
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _prefect(running: Running | None) -> dict[str, str]:
    if running and running.prefect_api_url:
        return {"PREFECT_API_URL": running.prefect_api_url}
    return {
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        # It takes 6 to 16 s on two idle cores; Prefect gives up after 20.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    }


def _mlflow(home: Path, running: Running | None) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": (running and running.mlflow_url) or mlflow_database(home)}
