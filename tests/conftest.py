"""Fixtures that several rooms' tests share: a home of the session's own, the two kinds of root, the tiny model."""

from pathlib import Path

import pytest
from hypothesis import settings
from s3_roots import s3_root
from server_fixtures import mlflow_server, prefect_server, seaweed  # noqa: F401 - fixtures
from tiny_model import build_tiny_model

# How long an example takes says how busy the machine is: no test asserts a time.
settings.register_profile("posttrain", deadline=None)
settings.load_profile("posttrain")


@pytest.fixture(scope="session", autouse=True)
def session_home(tmp_path_factory: pytest.TempPathFactory):
    """No test reads or writes the user's own home of posttrain."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSTTRAIN_HOME", str(home))
        patch.delenv("POSTTRAIN_ROOT", raising=False)
        yield home


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random two-layer Llama with a tokenizer and a chat template."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny_model") / "model")


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's architecture with other weights."""
    return build_tiny_model(tmp_path_factory.mktemp("other_model") / "model", seed=1)


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh root, once a folder and once a prefix in a real SeaweedFS bucket."""
    if request.param == "local":
        return str(tmp_path / "root")
    return s3_root(request.getfixturevalue("seaweed"), monkeypatch)
