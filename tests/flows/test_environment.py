"""The embedded environment: one home, one pair of databases, with and without the servers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.environment import embedded
from flows.services import processes
from flows.services.running import Service, record, recorded
from flows.services.seaweed import credentials_file
from storage.errors import InputError

READ = ("PREFECT_", "MLFLOW_", "_MLFLOW", "AWS_", "POSTTRAIN_", "DO_NOT_TRACK")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    """Nothing that `embedded` sets is set, and nothing that it sets stays."""
    before = {name: value for name, value in os.environ.items() if not name.startswith(READ)}
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in set(os.environ) - set(before):
        del os.environ[name]


@pytest.fixture
def sleeper(tmp_path):
    """A marked process that pretends to be a server at a port: only whether it lives is asked here."""
    service = processes.start(
        tmp_path,
        "prefect",
        [sys.executable, "-c", "import time; time.sleep(60)"],
        dict(os.environ),
        folder=tmp_path,
        port=4321,
    )
    yield service
    processes.end(service)


def test_without_services_everything_stays_below_the_home(tmp_path):
    embedded(tmp_path)
    assert os.environ["PREFECT_HOME"] == str(tmp_path / "prefect")
    assert os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] == "true"
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert "PREFECT_API_URL" not in os.environ
    assert not [name for name in os.environ if name.startswith("AWS_")]


def test_what_the_user_set_stays(tmp_path, sleeper):
    record(tmp_path, {"prefect": sleeper})
    os.environ["PREFECT_API_URL"] = "http://prefect.example/api"
    os.environ["MLFLOW_TRACKING_URI"] = "http://mlflow.example"
    embedded(tmp_path)
    assert os.environ["PREFECT_API_URL"] == "http://prefect.example/api"
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://mlflow.example"


def test_services_that_are_alive_are_used(tmp_path, sleeper):
    credentials_file(tmp_path)
    record(tmp_path, {name: _as(sleeper, name, port) for name, port in [("prefect", 1), ("mlflow", 2), ("s3", 3)]})
    embedded(tmp_path)
    assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:1/api"
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:2"
    assert os.environ["AWS_ENDPOINT_URL"] == "http://127.0.0.1:3"
    assert len(os.environ["AWS_SECRET_ACCESS_KEY"]) >= 32


def test_the_users_own_store_is_never_mixed_with_the_local_one(tmp_path, sleeper):
    credentials_file(tmp_path)
    record(tmp_path, {"s3": _as(sleeper, "s3", 3)})
    os.environ["AWS_PROFILE"] = "work"
    embedded(tmp_path)
    assert "AWS_ENDPOINT_URL" not in os.environ
    assert "AWS_ACCESS_KEY_ID" not in os.environ


def test_a_service_that_died_is_not_used(tmp_path, sleeper):
    record(tmp_path, {"prefect": sleeper})
    processes.end(sleeper)
    embedded(tmp_path)
    assert "PREFECT_API_URL" not in os.environ


def test_another_process_under_a_recycled_id_is_not_taken_for_a_service(tmp_path):
    record(tmp_path, {"prefect": Service("prefect", os.getpid(), "0" * 32, 0.0, 4321)})
    embedded(tmp_path)
    assert "PREFECT_API_URL" not in os.environ


def test_a_damaged_state_file_is_named(tmp_path):
    (tmp_path / "services.json").write_text('{"services": [')
    with pytest.raises(InputError, match=r"services\.json is damaged"):
        recorded(tmp_path)


def test_the_credentials_are_this_users_only_and_stay(tmp_path):
    path = credentials_file(tmp_path)
    assert path.stat().st_mode & 0o077 == 0
    before = path.read_text()
    assert credentials_file(tmp_path).read_text() == before
    assert json.loads(before)["identities"][0]["actions"][0] == "Admin"


def test_it_imports_neither_prefect_nor_mlflow(tmp_path):
    code = (
        "import sys; from pathlib import Path; from flows.environment import embedded; embedded(Path(sys.argv[1]));"
        "heavy = {'prefect', 'mlflow', 'torch', 's3fs', 'polars'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=os.environ)


def test_prefect_and_mlflow_take_these_settings(tmp_path):
    """Names drift between releases: what the two resolve is what counts."""
    code = """if True:
        import sys
        from pathlib import Path
        from flows.environment import embedded
        embedded(Path(sys.argv[1]))
        import mlflow
        from prefect.settings import get_current_settings
        settings = get_current_settings()
        assert settings.home == Path(sys.argv[1]) / "prefect", settings.home
        assert str(settings.home) in settings.server.database.connection_url.get_secret_value()
        assert settings.server.memo_store_path.parent == settings.home
        assert settings.results.local_storage_path == settings.home / "storage"
        assert settings.results.persist_by_default
        assert settings.server.ephemeral.enabled and settings.server.ephemeral.startup_timeout_seconds == 180
        assert not settings.server.analytics_enabled
        client = mlflow.MlflowClient()
        experiment = client.get_experiment(client.create_experiment("x"))
        assert experiment.artifact_location.startswith((Path(sys.argv[1]) / "mlartifacts").as_uri()), experiment
    """
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, env=os.environ, cwd=_folder(tmp_path / "elsewhere")
    )
    assert (tmp_path / "mlflow.db").exists()
    assert not list((tmp_path / "elsewhere").iterdir())


def _as(service: Service, name: str, port: int) -> Service:
    return Service(name, service.pid, service.mark, service.started_at, port)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
