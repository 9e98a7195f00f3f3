"""`posttrain up` and `down` with the real servers, below one home and on free ports."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import s3fs
from servers import ANY_PORTS

from flows.services import processes
from flows.services.health import request
from flows.services.lifecycle import down, up
from flows.services.running import Ports, Running, addresses, recorded
from storage.errors import InputError

pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]

FLOW = """
import json, os
from pathlib import Path
from prefect import flow

@flow
def note(to: str = "note.json") -> None:
    names = ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "POSTTRAIN_HOME")
    Path(to).write_text(json.dumps({name: os.environ.get(name) for name in names}))
"""
DEPLOYMENTS = """
name: test
deployments:
  - name: nightly
    entrypoint: noting.py:note
    work_pool: {name: posttrain}
"""
EMBEDDED = """
import sys
from pathlib import Path
from flows.environment import embedded
embedded(Path(sys.argv[1]))
import mlflow
from noting import note
note.with_options(name="before-up")(sys.argv[2])
mlflow.set_experiment("before-up")
with mlflow.start_run():
    mlflow.log_text("kept", "note.txt")
"""


@dataclass
class Site:
    """A project folder with one deployment, its home, and what `up` said."""

    folder: Path
    lines: list[str] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def up(self, ports: Ports = ANY_PORTS) -> Running:
        self.lines.clear()
        return up(home=self.home, ports=ports, echo=self.lines.append, deployments=self.folder / "deployments")

    def processes(self) -> dict[str, int]:
        return {name: service.pid for name, service in recorded(self.home).items()}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site where one run went before there were servers; `up` has been called, `down` follows."""
    site = Site(tmp_path_factory.mktemp("site"))
    (site.folder / "noting.py").write_text(FLOW)
    (site.folder / "deployments").mkdir()
    (site.folder / "deployments" / "prefect.yaml").write_text(DEPLOYMENTS)
    ours = str(Path(processes.__file__).parents[2])
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "MLFLOW", "AWS"))}
    command = [sys.executable, "-c", EMBEDDED, str(site.home), str(site.folder / "embedded.json")]
    environment = clean | {"PYTHONPATH": f"{site.folder}{os.pathsep}{ours}"}
    subprocess.run(command, check=True, cwd=site.folder, env=environment, timeout=200)
    site.up()
    yield site
    down(site.home)


def test_every_server_answers_and_only_on_loopback(site):
    running = addresses(site.home)
    assert running and running.worker
    assert request(f"{running.prefect_api_url}/health") is True
    assert request(f"{running.mlflow_url}/health") == "OK"
    assert _store(running).ls("") == ["posttrain"]
    listening = {
        connection.laddr.ip
        for service in running.services.values()
        for process in processes.members(service)
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_what_ran_before_up_shows_on_the_servers(site):
    running = addresses(site.home)
    flows = request(f"{running.prefect_api_url}/flows/filter", {})
    assert "before-up" in {flow["name"] for flow in flows}
    api = f"{running.mlflow_url}/api/2.0/mlflow"
    experiment = request(f"{api}/experiments/get-by-name?experiment_name=before-up")["experiment"]
    [run] = request(f"{api}/runs/search", {"experiment_ids": [experiment["experiment_id"]]})["runs"]
    page = f"{running.mlflow_url}/get-artifact?path=note.txt&run_uuid={run['info']['run_id']}"
    assert request(page) == "kept"


def test_a_deployment_runs_on_the_worker_with_this_homes_addresses(site):
    running = addresses(site.home)
    api = running.prefect_api_url
    [deployment] = request(f"{api}/deployments/filter", {})
    note = site.folder / "worker.json"
    parameters = {"parameters": {"to": str(note)}}
    run = request(f"{api}/deployments/{deployment['id']}/create_flow_run", parameters)
    assert _final_state(f"{api}/flow_runs/{run['id']}") == "COMPLETED"
    assert json.loads(note.read_text()) == {
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(site.home / "prefect"),
        "MLFLOW_TRACKING_URI": running.mlflow_url,
        "AWS_ENDPOINT_URL": running.s3.endpoint_url,
        "POSTTRAIN_HOME": str(site.home),
    }


def test_a_second_up_keeps_everything(site):
    before = site.processes()
    site.up()
    assert site.processes() == before
    assert sum("runs already" in line for line in site.lines) == 4


def test_after_kill_9_only_what_died_is_started_and_nothing_is_lost(site):
    running = addresses(site.home)
    _store(running).pipe("posttrain/kept", b"bytes")
    before = recorded(site.home)
    for name in ("mlflow", "s3"):
        os.kill(before[name].pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(before["s3"].pid)], timeout=1)
    site.up()
    after = recorded(site.home)
    assert {name for name in after if after[name].pid != before[name].pid} == {"mlflow", "s3"}
    assert {name: service.port for name, service in after.items()} == {n: s.port for n, s in before.items()}
    assert not processes.members(before["mlflow"]), "its child would hold the port"
    assert _store(addresses(site.home)).cat("posttrain/kept") == b"bytes"


def test_a_port_of_someone_else_is_named_and_nothing_is_started(site, tmp_path):
    taken = addresses(site.home).services["mlflow"].port
    try:
        with pytest.raises(InputError, match=rf"port {taken} is taken by process \d+ .*--mlflow-port"):
            up(home=tmp_path, ports=Ports(0, taken, 0), echo=site.lines.append, deployments=tmp_path / "deployments")
        assert addresses(tmp_path) is None
        assert not (tmp_path / "logs").exists()
    finally:
        down(tmp_path)


def test_down_ends_just_what_up_started(site):
    """Last: the site is gone after it."""
    port = processes.free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    stranger = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    services = recorded(site.home)
    ended = down(site.home)
    assert [line.split()[0] for line in ended] == ["worker", "prefect", "mlflow", "s3"]
    assert not [process for service in services.values() for process in processes.members(service)]
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()
    assert addresses(site.home) is None
    assert down(site.home) == []


def _store(running: Running) -> s3fs.S3FileSystem:
    access = running.s3
    return s3fs.S3FileSystem(
        key=access.access_key, secret=access.secret_key, endpoint_url=access.endpoint_url, skip_instance_cache=True
    )


def _final_state(flow_run_url: str, timeout_s: float = 120.0) -> str:
    deadline = time.monotonic() + timeout_s
    state = ""
    while state not in {"COMPLETED", "FAILED", "CRASHED"} and time.monotonic() < deadline:
        time.sleep(0.5)
        state = request(flow_run_url)["state"]["type"]
    return state
