"""The whole loop with a tiny random model, on both kinds of root, against a real Prefect and MLflow server."""

import json

import httpx
import pytest
from mlflow import MlflowClient
from pipeline import contents, environment, manifests, posttrain, run_file, states
from s3_roots import s3_root

STEPS = {
    *("curate", "select", "rollouts", "grading", "history", "filtering", "preferences", "reward_check"),
    *("reward_model", "reward_gate", "policy_update"),
    *("evaluation-select", "evaluation-rollouts", "evaluation-grading", "evaluation", "report"),
}
# Offline: trained once, in the first iteration, then frozen and watched.
ONCE = {"reward_model", "reward_gate"}


@pytest.fixture(scope="module", params=[pytest.param("local", marks=pytest.mark.slow), "s3"])
def campaign(request, tmp_path_factory, tiny_model, prefect_server, mlflow_server):
    """A finished campaign of two iterations: its root, environment, run file and output."""
    folder = tmp_path_factory.mktemp("campaign")
    with pytest.MonkeyPatch.context() as patch:
        local = request.param == "local"
        root = str(folder / "root") if local else s3_root(request.getfixturevalue("seaweed"), patch)
        env = environment(folder / "home", PREFECT_API_URL=prefect_server, MLFLOW_TRACKING_URI=mlflow_server)
        path = run_file(folder, tiny_model, campaign=f"tiny-{request.param}")
        output = posttrain("run", str(path), "--root", root, env=env)
        yield {"root": root, "env": env, "path": str(path), "output": output, "name": f"tiny-{request.param}"}


def runs_of(prefect_url, flow_run_filter):
    answer = httpx.post(
        f"{prefect_url}/task_runs/filter", json={"flow_runs": flow_run_filter, "sort": "EXPECTED_START_TIME_ASC"}
    )
    return answer.raise_for_status().json()


def newest_flow_run(prefect_url, name):
    body = {"flows": {"name": {"any_": [name]}}, "sort": "START_TIME_DESC", "limit": 1}
    return httpx.post(f"{prefect_url}/flow_runs/filter", json=body).raise_for_status().json()[0]


def test_both_iterations_are_committed_and_every_stage_left_its_artifact(campaign):
    committed = states(campaign["root"], campaign["name"])
    assert list(committed) == ["00000.json", "00001.json", "00002.json"]
    assert set(committed["00001.json"]["steps"]) == STEPS
    assert set(committed["00002.json"]["steps"]) == STEPS - ONCE
    made = manifests(campaign["root"])
    assert {artifact_id for state in committed.values() for artifact_id in state["steps"].values()} <= set(made)
    second = made[committed["00002.json"]["steps"]["grading"]]
    assert {name for name in second.metrics if name.startswith("score/") and name.endswith("_mean")} == {
        "score/verifier_mean",
        "score/reward_model_mean",
    }
    assert made[committed["00001.json"]["steps"]["rollouts"]].metrics["rollouts"] == 32
    curated = made[committed["00001.json"]["steps"]["curate"]]
    assert set(curated.tables) == {"prompts", "rejected", "coverage"} and set(curated.files) == {"coverage.png"}
    assert curated.metrics["coverage/domains"] == 1


def test_the_run_ends_with_its_table_and_where_to_look(campaign):
    assert "held-out score" in campaign["output"]
    for line in ("report", "Prefect", "MLflow", "posttrain up"):
        assert line in campaign["output"]


def test_prefect_shows_each_stage_and_carries_no_rows(campaign, prefect_server):
    parent = newest_flow_run(prefect_server, "post-training")
    assert parent["state"]["type"] == "COMPLETED"
    names = {run["name"] for run in runs_of(prefect_server, {"parent_flow_run_id": {"any_": [parent["id"]]}})}
    assert names >= STEPS - ONCE
    assert any(name.startswith("rollouts-shard-1") for name in names)
    newest = newest_flow_run(prefect_server, "iteration")
    links = httpx.post(
        f"{prefect_server}/artifacts/filter", json={"flow_runs": {"id": {"any_": [newest["id"]]}}}
    ).json()
    assert any("/#/experiments/" in str(link["data"]) for link in links if link["key"] == "mlflow")
    state = newest["parameters"]["state"]
    assert len(json.dumps(state)) < 4000


def test_mlflow_has_a_parent_run_child_runs_metrics_datasets_and_aliases(campaign, mlflow_server):
    client = MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("posttrain")
    by_campaign = f"tags.`posttrain.campaign` = '{campaign['name']}'"
    runs = client.search_runs([experiment.experiment_id], by_campaign)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.data.tags["posttrain.iteration"]: run for run in runs if "mlflow.parentRunId" in run.data.tags}
    assert len(parents) == 1
    assert set(children) == {"0", "1", "2"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parents[0].info.run_id}
    second = children["2"]
    assert second.data.params["algorithm"] == "dr_grpo"
    for metric in ("grading/reward_mean", "evaluation/mean_score", "policy_update/seconds", "rollouts/tokens_per_s"):
        assert metric in second.data.metrics
    committed = states(campaign["root"], campaign["name"])["00002.json"]
    digests = {entry.dataset.digest for entry in second.inputs.dataset_inputs}
    assert committed["steps"]["rollouts"].split("/")[1] in digests
    assert "/runs/flow-run/" in second.data.tags["prefect.flow_run_url"]
    assert "/runs/flow-run/" in second.data.tags["mlflow.note.content"]
    assert [file.path for file in client.list_artifacts(second.info.run_id, "report")] == [
        f"report/{name}"
        for name in (
            "difficulty.png",
            "funnel.png",
            "groups.png",
            "held-out-score.png",
            "report.html",
            "reward-model.png",
            "reward.png",
            "seconds.png",
        )
    ]
    assert [file.path for file in client.list_artifacts(second.info.run_id, "curate")] == ["curate/coverage.png"]
    challenger = client.get_model_version_by_alias(f"{campaign['name']}-policy", "challenger")
    champion = client.get_model_version_by_alias(f"{campaign['name']}-policy", "champion")
    assert challenger.tags["posttrain.artifact"] == committed["policy"]
    assert champion.tags["posttrain.artifact"] == committed["champion"]


def test_rerunning_a_stage_repeats_that_stage_alone(campaign, prefect_server):
    before = manifests(campaign["root"])
    arguments = ["rerun", campaign["name"], "2", "grading", "--root", campaign["root"]]
    posttrain(*arguments, env=campaign["env"])
    assert {k: m.attempt for k, m in manifests(campaign["root"]).items()} == {k: m.attempt for k, m in before.items()}
    posttrain(*arguments, "--force", env=campaign["env"])
    after = manifests(campaign["root"])
    changed = [artifact_id for artifact_id in before if after[artifact_id].attempt != before[artifact_id].attempt]
    assert changed == [states(campaign["root"], campaign["name"])["00002.json"]["steps"]["grading"]]
    assert contents(campaign["root"]).items() >= {k: m.content for k, m in before.items()}.items()
    newest = newest_flow_run(prefect_server, "rerun-stage")
    tasks = {run["name"]: run["state"]["name"] for run in runs_of(prefect_server, {"id": {"any_": [newest["id"]]}})}
    assert tasks["select"] == tasks["rollouts"] == "Cached"
    assert tasks["grading"] == "Completed"
    assert "filtering" not in tasks


def test_a_lost_state_is_made_again_from_cached_stages(campaign, prefect_server):
    from storage.store import open_store

    store = open_store(campaign["root"])
    store.remove(f"campaigns/{campaign['name']}/iterations/00002.json")
    before = {k: m.attempt for k, m in manifests(campaign["root"]).items()}
    posttrain("run", campaign["path"], "--root", campaign["root"], env=campaign["env"])
    assert {k: m.attempt for k, m in manifests(campaign["root"]).items()} == before
    newest = newest_flow_run(prefect_server, "iteration")
    tasks = runs_of(prefect_server, {"id": {"any_": [newest["id"]]}})
    assert {run["state"]["name"] for run in tasks} == {"Cached"}


def test_status_show_and_lineage_answer(campaign):
    root, env = campaign["root"], campaign["env"]
    status = json.loads(posttrain("status", campaign["name"], "--root", root, "--json", env=env))
    assert [row["iteration"] for row in status["iterations"]] == [0, 1, 2]
    committed = states(root, campaign["name"])["00002.json"]
    shown = json.loads(posttrain("show", committed["steps"]["rollouts"], "--root", root, "--json", env=env))
    assert shown["manifest"]["stage"] == "rollouts"
    traced = json.loads(posttrain("lineage", committed["policy"], "--root", root, "--json", env=env))
    assert committed["steps"]["filtering"] in traced["upstream"]
    assert committed["steps"]["curate"] in traced["upstream"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rerun", "nobody", "1", "grading"], "nothing was launched"),
        (["rerun", "CAMPAIGN", "9", "grading"], "no iteration 9"),
        (["rerun", "CAMPAIGN", "1", "gradin"], "expected one of curate, select"),
    ],
)
def test_reruns_that_cannot_be(campaign, arguments, message):
    arguments = [campaign["name"] if part == "CAMPAIGN" else part for part in arguments]
    output = posttrain(*arguments, "--root", campaign["root"], env=campaign["env"], code=2)
    assert message in " ".join(output.split())
