"""Three iterations with a grader that answers between the runs: its grades come late, and train what they belong to."""

import hashlib
import json

import polars as pl
import pytest
from pipeline import environment, manifests, posttrain, run_file, states

from storage.artifacts import Artifact

LIMIT = 1


def answer(folder, tickets):
    """What a person or a cluster job does: an answer file for each ticket, its score by a hash of the text."""
    for ticket in tickets:
        request = json.loads((folder / "requests" / f"{ticket}.json").read_text())
        score = hashlib.blake2b(request["text"].encode(), digest_size=1).digest()[0] / 255
        reply = {"score": score, "passed": score > 0.5, "cost": 0.5, "detail": {"by": "a person"}}
        (folder / "answers" / f"{ticket}.json").write_text(json.dumps(reply))


def requests(folder):
    """Ticket -> when its file was written."""
    return {path.stem: path.stat().st_mtime_ns for path in (folder / "requests").glob("*.json")}


@pytest.fixture(scope="module")
def campaign(tmp_path_factory, tiny_model, prefect_server):
    """Three runs of one iteration each; between them some groups are answered whole, one in part, the rest never."""
    folder = tmp_path_factory.mktemp("slow")
    asked, root = folder / "asked", str(folder / "root")
    grading = {
        "max_pending_iterations": LIMIT,
        "graders": [
            {"grader": "verifier", "weight": 0.5},
            {"grader": "folder", "weight": 0.5, "latency": "slow", "params": {"folder": str(asked)}},
        ],
    }
    env = environment(folder / "home", PREFECT_API_URL=prefect_server)
    path = run_file(folder, tiny_model, grading=grading)
    facts = {"root": root, "env": env, "asked": asked, "requests": {}, "answered": {}}
    for iteration in (1, 2, 3):
        posttrain("run", str(path), "--root", root, "--iterations", str(iteration), env=env)
        facts["requests"][iteration] = requests(asked)
        pending = table(root, iteration, "slow-grading", "pending").filter(pl.col("iteration") == iteration)
        groups = sorted(set(pending["prompt_id"]))
        whole, part = groups[:3], pending.filter(pl.col("prompt_id") == groups[3])["ticket"][:2]
        answer(asked, [*pending.filter(pl.col("prompt_id").is_in(whole))["ticket"], *part])
        facts["answered"][iteration] = {"whole": set(whole), "part": groups[3], "never": set(groups[4:])}
    return facts


def table(root, iteration, step, name):
    state = states(root)[f"{iteration:05d}.json"]
    return Artifact.at(root, state["steps"][step]).read(name)


def made(campaign, iteration, step):
    return manifests(campaign["root"])[states(campaign["root"])[f"{iteration:05d}.json"]["steps"][step]]


def test_fresh_rollouts_wait_and_nothing_incomplete_trains(campaign):
    grades = table(campaign["root"], 1, "rewards", "grades")
    assert dict(grades.group_by("grader", "status").len().select("grader", "len").iter_rows()) == {
        "verifier": 32,
        "folder": 32,
    }
    assert set(grades.filter(pl.col("grader") == "folder")["status"]) == {"pending"}
    assert not table(campaign["root"], 1, "rewards", "rewards")["complete"].any()
    assert set(table(campaign["root"], 1, "filtering", "ledger")["rule"]) == {"incomplete"}
    assert made(campaign, 1, "policy_update").metrics["trained_rows"] == 0
    state = states(campaign["root"])["00001.json"]
    assert state["pending_grades"] == state["steps"]["slow-grading"]


def test_late_grades_train_their_own_rollouts_with_their_true_age(campaign):
    root, answered = campaign["root"], campaign["answered"][1]
    late, first = table(root, 2, "slow-grading", "late_grades"), table(root, 1, "rollouts", "rollouts")
    fresh = table(root, 2, "rollouts", "rollouts")
    assert set(late["rollout_id"]) <= set(first["rollout_id"]) and not set(late["rollout_id"]) & set(
        fresh["rollout_id"]
    )
    assert set(late["status"]) == {"ok"}
    trained = table(root, 2, "late-filtering-1", "trajectories")
    assert trained["group_id"].n_unique() > 0
    assert set(trained["group_id"]) <= answered["whole"]
    assert trained.join(first, on="rollout_id", how="anti").is_empty()
    complete = table(root, 2, "late-rewards-1", "rewards").join(first, on="rollout_id").filter("complete")
    assert set(complete["prompt_id"]) == answered["whole"]
    update = made(campaign, 2, "policy_update")
    assert update.inputs["late.1"] == states(root)["00002.json"]["steps"]["late-filtering-1"]
    assert update.metrics["trained_rows"] > 0


def test_the_rest_expires_and_says_so(campaign):
    root, never = campaign["root"], campaign["answered"][1]["never"]
    late, first = table(root, 3, "slow-grading", "late_grades"), table(root, 1, "rollouts", "rollouts")
    expired = late.filter(pl.col("status") == "failed")
    assert all(f"no answer within {LIMIT} iterations" in json.loads(text)["error"] for text in expired["detail"])
    owners = first.filter(pl.col("prompt_id").is_in(list(never)))
    assert set(owners["rollout_id"]) <= set(expired["rollout_id"])
    assert made(campaign, 3, "slow-grading").metrics["expired"] == len(expired)
    still_open = table(root, 3, "slow-grading", "pending")
    assert set(still_open["iteration"]) == {2, 3}
    second = table(root, 3, "late-filtering-1", "trajectories")
    assert set(second["group_id"]) <= campaign["answered"][2]["whole"]


def test_nothing_is_handed_over_twice(campaign):
    first, second, third = (campaign["requests"][iteration] for iteration in (1, 2, 3))
    assert first.items() < second.items() < third.items()
    submitted = sum(made(campaign, iteration, "slow-grading").metrics["submitted"] for iteration in (1, 2, 3))
    assert submitted == len(third)


def test_lineage_of_a_rollout_shows_its_late_grade_and_whom_it_trained(campaign):
    root = campaign["root"]
    rollout_id = table(root, 2, "late-filtering-1", "trajectories")["rollout_id"][0]
    traced = json.loads(posttrain("lineage", rollout_id, "--root", root, "--json", env=campaign["env"]))
    slow = [row for row in traced["sections"]["grades"] if row["grader"] == "folder"]
    assert {row["status"] for row in slow} == {"pending", "ok"}
    steps = states(root)["00002.json"]["steps"]
    assert [row["artifact"] for row in traced["sections"]["trajectories"]] == [steps["late-filtering-1"]]
    assert [row["artifact"] for row in traced["sections"]["policies_trained"]] == [steps["policy_update"]]


def test_reruns_find_what_was_asked_and_settle_it_again(campaign):
    root, env, before = campaign["root"], campaign["env"], requests(campaign["asked"])
    kept = manifests(root)
    posttrain("rerun", "tiny", "2", "slow-grading", "--root", root, env=env)
    posttrain("rerun", "tiny", "2", "late-rewards-1", "--force", "--root", root, env=env)
    assert requests(campaign["asked"]) == before
    after = manifests(root)
    again = states(root)["00002.json"]["steps"]["late-rewards-1"]
    assert [name for name in kept if after[name].attempt != kept[name].attempt] == [again]
    assert after[again].content == kept[again].content
