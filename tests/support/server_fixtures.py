"""Session fixtures: a real S3 store, Prefect server and MLflow server, each started on first use."""

import pytest
from servers import Seaweed, seaweed_server, server


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory):
    """A `servers.Seaweed`; set AWS_* from it, or pass its credentials."""
    with seaweed_server(tmp_path_factory.mktemp("seaweed")) as store:
        yield store


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory):
    """The API's URL of a Prefect server with a database of its own."""
    with server(tmp_path_factory.mktemp("prefect_server"), "prefect") as url:
        yield f"{url}/api"


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory):
    """The tracking URI of an MLflow server with a database of its own."""
    with server(tmp_path_factory.mktemp("mlflow_server"), "mlflow") as url:
        yield url


__all__ = ["Seaweed", "mlflow_server", "prefect_server", "seaweed"]
