"""A campaign whose champion judges its rollouts: whose weights judge, and that held-out prompts are left to others."""

import os

import polars as pl
import pytest
from pipeline import REPOSITORY, environment, manifests, posttrain, run_file, states

from storage.artifacts import Artifact

GRADING = {
    "graders": [
        {"grader": "verifier", "weight": 0.5},
        {
            "grader": "rubric",
            "name": "by_champion",
            "weight": 0.5,
            "from_iteration": 1,
            "judging": {
                "local": {
                    "model": "champion",
                    "engine": {"name": "scripted_engine:ScriptedEngine", "max_model_len": 4096},
                },
                "rubric": "implicit",
                "criteria": [{"criterion": "is short"}],
            },
        },
    ]
}


@pytest.mark.servers
def test_the_champion_judges_the_rollouts_of_its_successors(tmp_path, tiny_model, prefect_server, mlflow_server):
    paths = os.pathsep.join([str(REPOSITORY / "tests" / "support"), str(REPOSITORY)])
    more = {"PREFECT_API_URL": prefect_server, "MLFLOW_TRACKING_URI": mlflow_server, "PYTHONPATH": paths}
    env = environment(tmp_path / "home", **more)
    root = str(tmp_path / "root")
    path = run_file(tmp_path, tiny_model, grading=GRADING)
    posttrain("check", str(path), "--root", root, env=env)
    posttrain("run", str(path), "--root", root, env=env)
    made, committed = manifests(root), states(root)
    for iteration in (1, 2):
        before, after = committed[f"{iteration - 1:05d}.json"], committed[f"{iteration:05d}.json"]
        graded = made[after["steps"]["grading"]]
        assert graded.inputs["judge_models.by_champion"] == before["champion"]
        grades = Artifact.at(root, after["steps"]["grading"]).read("grades").filter(pl.col("grader") == "by_champion")
        assert set(grades["status"]) == {"ok"} and grades["score"].n_unique() > 1
        assert grades["grader_version"].str.contains(before["champion"].partition("/")[2]).all()
        assert graded.metrics["cost/by_champion"] == 0.0 and "suspected_injection/by_champion" in graded.metrics
        held_out = made[after["steps"]["evaluation-grading"]]
        assert not any(name.startswith("judge_models") for name in held_out.inputs)
