"""Kill -9 in every stage, run again, and compare every artifact with an undisturbed run."""

import signal
import time

import pytest
from pipeline import contents, environment, posttrain, run_file, start, states

# The n-th artifact of a stage that is begun: 2 is where the base model's evaluation made the first.
KILLS = [
    ("curate", 1),
    ("select", 1),
    ("rollouts", 1),
    ("evaluation", 1),
    ("select", 2),
    ("rollouts", 2),
    ("grading", 2),
    ("filtering", 1),
    ("preferences", 1),
    ("reward_model", 1),
    ("policy_update", 1),
    ("rollouts", 3),
    ("evaluation", 2),
    ("report", 1),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_model, prefect_server):
    """The root of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    root = str(folder / "root")
    env = environment(folder / "home", PREFECT_API_URL=prefect_server)
    posttrain("run", str(run_file(folder, tiny_model)), "--root", root, env=env)
    return root


def killed_in(stage: str, number: int, arguments: list[str], env: dict[str, str], home) -> bool:
    """Start a run and kill it once it begins its n-th artifact of a stage; False when the run ended before."""
    scratch = home / "scratch" / stage
    begun: set[str] = set()
    with (home.parent / "killed.log").open("a") as log:
        process = start(*arguments, env=env, output=log)
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            if scratch.is_dir():
                begun |= {entry.name for entry in scratch.iterdir()}
            if len(begun) >= number:
                break
            time.sleep(0.001)
        process.kill()
        process.wait()
    return process.returncode == -signal.SIGKILL and len(begun) >= number


@pytest.mark.timeout(1500)
def test_killed_in_each_stage_and_run_again(tmp_path, tiny_model, prefect_server, undisturbed):
    root, home = str(tmp_path / "root"), tmp_path / "home"
    env = environment(home, PREFECT_API_URL=prefect_server)
    arguments = ["run", str(run_file(tmp_path, tiny_model)), "--root", root]
    committed_so_far: dict[str, str] = {}
    kills = 0
    for stage, number in KILLS:
        begun_before = sum(1 for artifact_id in committed_so_far if artifact_id.startswith(f"{stage}/"))
        kills += killed_in(stage, max(1, number - begun_before), arguments, env, home)
        now = contents(root)
        assert committed_so_far.items() <= now.items(), "a kill changed what was committed"
        committed_so_far = now
    assert kills >= len(KILLS) - 2, "too few of the kills hit a running stage for this test to mean anything"
    posttrain(*arguments, env=env)
    assert contents(root) == contents(undisturbed)
    assert states(root) == states(undisturbed)


def test_a_second_run_finds_everything(tmp_path, tiny_model, prefect_server, undisturbed):
    before = contents(undisturbed)
    env = environment(tmp_path / "home", PREFECT_API_URL=prefect_server)
    output = posttrain("run", str(run_file(tmp_path, tiny_model)), "--root", undisturbed, env=env)
    assert "nothing to do" in output
    assert contents(undisturbed) == before


@pytest.mark.parametrize("homes", [("one", "two"), ("shared", "shared")])
def test_of_two_runners_one_commits_and_the_other_says_so(tmp_path, tiny_model, prefect_server, homes):
    root = str(tmp_path / "root")
    arguments = ["run", str(run_file(tmp_path, tiny_model)), "--root", root]
    first = start(*arguments, env=environment(tmp_path / homes[0], PREFECT_API_URL=prefect_server))
    second = start(*arguments, env=environment(tmp_path / homes[1], PREFECT_API_URL=prefect_server))
    outputs = [process.communicate(timeout=300)[0] for process in (first, second)]
    codes = sorted([first.returncode, second.returncode])
    assert codes == [0, 4], "\n".join(outputs)[-6000:]
    loser = outputs[0] if first.returncode == 4 else outputs[1]
    assert "was committed by launch" in loser
    assert "Nothing is lost" in loser
    assert sorted(states(root)) == ["00000.json", "00001.json", "00002.json"]
