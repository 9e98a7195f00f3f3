"""Another algorithm over last night's rollouts: a fork of a campaign generates nothing that the first one has."""

import pytest
from pipeline import environment, manifests, posttrain, run_file, states

JUDGED = {
    "graders": [
        {"grader": "verifier", "weight": 0.8, "judge": True, "pass_score": 0.2},
        {"grader": "reward_model", "weight": 0.2, "from_iteration": 2},
    ]
}


@pytest.fixture(scope="module")
def campaign(tmp_path_factory, tiny_model, prefect_server, mlflow_server):
    """A campaign of one iteration: its folder, root, environment and run file."""
    folder = tmp_path_factory.mktemp("algorithms")
    env = environment(folder / "home", PREFECT_API_URL=prefect_server, MLFLOW_TRACKING_URI=mlflow_server)
    path = run_file(folder, tiny_model, campaign="first", iterations=1, grading=JUDGED)
    posttrain("run", str(path), "--root", str(folder / "root"), env=env)
    return {"root": str(folder / "root"), "env": env, "path": str(path)}


def run_fork(campaign, name, *settings, iterations=1, fork_at=0):
    """A fork under another configuration; its last state and its policy update's manifest."""
    root, env = campaign["root"], campaign["env"]
    posttrain("fork", "first", str(fork_at), name, "--root", root, env=env)
    options = [option for setting in (f"campaign={name}", *settings) for option in ("--set", setting)]
    command = ["run", campaign["path"], "--root", root, "--iterations", str(iterations), *options]
    output = posttrain(*command, env=env)
    state = states(root, name)[f"{iterations:05d}.json"]
    return state, manifests(root)[state["steps"]["policy_update"]], output


def weights(made):
    return made.files["adapter_model.safetensors"].sha256


# From trajectories with a critic, and from stored pairs; test_readme.py runs dapo.
@pytest.mark.parametrize(
    "algorithm",
    [pytest.param("dapo", marks=pytest.mark.slow), "ppo", "dpo", pytest.param("codpo", marks=pytest.mark.slow)],
)
def test_an_algorithm_trains_on_the_rollouts_that_are_there(campaign, algorithm):
    first = states(campaign["root"], "first")["00001.json"]
    state, made, _ = run_fork(campaign, f"with-{algorithm}", f"algorithm={algorithm}")
    for step in ("select", "rollouts", "grading"):
        assert state["steps"][step] == first["steps"][step]
    assert weights(made) != weights(manifests(campaign["root"])[first["policy"]])
    assert made.metrics["trained_rows"] > 0
    assert ("preferences" in made.inputs) == (algorithm == "dpo")
    assert ("value_head.safetensors" in made.files) == (algorithm == "ppo")


def test_full_weights_train_and_are_served(campaign):
    settings = ["policy_update.parameters=full", "policy_update.learning_rate=1e-4", "policy_update.dtype=float32"]
    state, made, _ = run_fork(campaign, "full", *settings, iterations=2)
    assert "model.safetensors" in made.files
    assert made.facts["weights"] == "full"
    assert state["iteration"] == 2
    assert 0 < made.metrics["parity_mean_difference"] < 0.1
    earlier = manifests(campaign["root"])[states(campaign["root"], "full")["00001.json"]["policy"]]
    assert made.files["model.safetensors"].sha256 != earlier.files["model.safetensors"].sha256


def test_replayed_trajectories_are_inputs_and_older(campaign):
    settings = ["policy_update.replay_iterations=2", "policy_update.correction={kind: truncate, max_age: 3}"]
    state, made, _ = run_fork(campaign, "replay", *settings, iterations=2, fork_at=1)
    first = states(campaign["root"], "first")["00001.json"]
    assert made.inputs["replayed.0"] == first["steps"]["filtering"]
    fresh = manifests(campaign["root"])[state["steps"]["filtering"]].metrics["kept"]
    assert made.metrics["trained_rows"] > fresh
    assert made.metrics["correction_effective"] < 1


def test_a_fork_is_refused_where_a_campaign_is(campaign):
    for _ in range(2):  # the second one completes what the first one may have left
        posttrain("fork", "first", "1", "copy", "--root", campaign["root"], env=campaign["env"])
    output = posttrain("fork", "first", "0", "copy", "--root", campaign["root"], env=campaign["env"], code=2)
    assert "campaign 'copy' exists" in output
    output = posttrain("fork", "first", "0", "first", "--root", campaign["root"], env=campaign["env"], code=2)
    assert "campaign 'first' exists" in output
    output = posttrain("fork", "first", "7", "other", "--root", campaign["root"], env=campaign["env"], code=2)
    assert "iteration 7 isn't committed" in output
