"""The two deployments on a real worker: run, fail, be retried from Prefect, and repeat only what is missing."""

import os
import re
import shutil
import subprocess
import sys
import time

import httpx
import pytest
import yaml
from pipeline import REPOSITORY, environment, posttrain, run_file, states

# A worker looks at a process that failed for some seconds and then calls its run crashed, a retried one too.
WORKER_REPORTS_S = 10
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A checkout whose nightly run file is the tiny campaign, with a model that isn't there yet, and its servers."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "flows").symlink_to(REPOSITORY / "flows")
    (folder / "deployments").mkdir()
    shutil.copy(REPOSITORY / "deployments" / "prefect.yaml", folder / "deployments")
    document = yaml.safe_load(run_file(folder, folder / "model").read_text())
    topics = str(REPOSITORY / "deployments" / "quickstart-topics.txt")
    document["curate"]["sources"][0]["params"]["topics"] = topics
    del document["iterations"]
    document |= {"iterations_per_run": 1, "root": str(folder / "root")}
    (folder / "deployments" / "nightly.yaml").write_text(yaml.safe_dump(document))
    # The worker asks for runs every second, not every ten.
    env = environment(folder / "home", PREFECT_WORKER_QUERY_SECONDS="1")
    ports = ["--prefect-port", "0", "--mlflow-port", "0", "--s3-port", "0"]
    output = posttrain("up", *ports, env=env, folder=folder, fresh=True)
    shown = dict(re.findall(r"^(Prefect|MLflow|S3) +(http://127.0.0.1:\d+)$", output, re.MULTILINE))
    assert set(shown) == {"Prefect", "MLflow", "S3"}, output
    yield {"folder": folder, "api": f"{shown['Prefect']}/api", "root": document["root"]}
    ended = posttrain("down", env=env, folder=folder)
    assert all(name in ended for name in ("worker", "prefect", "mlflow", "s3")), ended


def post(project, path, **body):
    return httpx.post(f"{project['api']}/{path}", json=body, timeout=30).raise_for_status().json()


def run_deployment(project, name, **parameters):
    deployment = httpx.get(f"{project['api']}/deployments/name/{name}").raise_for_status().json()
    return post(project, f"deployments/{deployment['id']}/create_flow_run", parameters=parameters)["id"]


def ended(project, flow_run_id, after=frozenset()):
    """Wait for the run to end in a state that isn't one of those before; gives the state."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        state = httpx.get(f"{project['api']}/flow_runs/{flow_run_id}").raise_for_status().json()["state"]
        if state["type"] in ENDED and state["id"] not in after:
            return state
        time.sleep(0.5)
    raise AssertionError(f"run {flow_run_id} didn't end: {state}")


def test_both_deployments_are_registered_with_schedule_limit_and_form(project):
    found = {one["name"]: one for one in post(project, "deployments/filter")}
    assert set(found) == {"nightly", "rerun-stage"}
    nightly = found["nightly"]
    assert nightly["schedules"][0]["schedule"]["cron"] == "0 2 * * *"
    assert nightly["schedules"][0]["schedule"]["timezone"] == "Europe/Berlin"
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["work_pool_name"] == "posttrain"
    assert nightly["parameters"]["config"]["campaign"] == "tiny"
    assert "RunConfig" in str(nightly["parameter_openapi_schema"])
    assert set(found["rerun-stage"]["parameter_openapi_schema"]["properties"]) >= {
        "campaign",
        "iteration",
        "stage",
        "force",
    }


@pytest.mark.timeout(900)
def test_a_failed_night_is_retried_from_prefect_and_a_stage_rerun(project, tiny_model):
    flow_run = run_deployment(project, "post-training/nightly")
    failed = ended(project, flow_run)
    assert failed["type"] == "FAILED"
    assert "nothing is there" in failed["message"]
    shutil.copytree(tiny_model, project["folder"] / "model")
    time.sleep(WORKER_REPORTS_S)
    failed = ended(project, flow_run)
    retry = [sys.executable, "-m", "prefect", "--no-prompt", "flow-run", "retry", flow_run]
    env = {**os.environ, "PREFECT_API_URL": project["api"]}
    done = subprocess.run(retry, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ended(project, flow_run, after={failed["id"]})["type"] == "COMPLETED"
    curated = post(project, "task_runs/filter", flow_runs={"id": {"any_": [flow_run]}})
    assert "Cached" in {run["state"]["name"] for run in curated if run["name"] == "curate"}
    assert list(states(project["root"])) == ["00000.json", "00001.json"]
    rerun = run_deployment(
        project, "rerun-stage/rerun-stage", campaign="tiny", iteration=1, stage="filtering", root=project["root"]
    )
    assert ended(project, rerun)["type"] == "COMPLETED"
    tasks = post(project, "task_runs/filter", flow_runs={"id": {"any_": [rerun]}})
    assert {run["state"]["name"] for run in tasks} == {"Cached"}
