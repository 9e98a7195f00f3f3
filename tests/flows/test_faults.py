"""Kill -9 in every stage, run again, and compare every artifact with an undisturbed run."""

import functools
import time
from pathlib import Path

import pytest
from pipeline import contents, environment, posttrain, run_file, start, states

# In the order of the pipeline, so that each run goes on from the stage that the one before was killed in.
KILLS = [
    "curate",
    "select",
    "rollouts",
    "grading",
    "evaluation",
    "filtering",
    "preferences",
    "reward_model",
    "policy_update",
    "report",
]
# In shards, whole, from its own checkpoints, and the last one before the state is committed.
ONE_OF_A_KIND = ["rollouts", "filtering", "policy_update", "report"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_model, prefect_server):
    """The root of a run of so many iterations that nothing disturbed, in an interpreter with its own order of sets."""

    @functools.cache
    def root_of(iterations: int) -> str:
        folder = tmp_path_factory.mktemp("undisturbed")
        root, path = str(folder / "root"), run_file(folder, tiny_model, iterations=iterations)
        env = environment(folder / "home", PREFECT_API_URL=prefect_server)
        posttrain("run", str(path), "--root", root, env=env, fresh=True)
        return root

    return root_of


def killed_in(stage: str, arguments: list[str], env: dict[str, str], home: Path) -> None:
    """Start a run and kill it as soon as it begins an artifact of a stage."""
    started = time.time()
    with (home.parent / "killed.log").open("a") as log:
        process = start(*arguments, env=env, output=log)
        while not begun_since(started, home / "scratch" / stage):
            assert process.poll() is None, f"the run ended before it began {stage}"
            assert time.time() < started + 240, f"the run didn't reach {stage}"
            time.sleep(0.001)
        process.kill()
        process.wait()


def begun_since(started: float, scratch: Path) -> bool:
    """Whether an attempt below a stage's scratch folder is newer than that."""
    try:
        return any(attempt.stat().st_mtime > started for attempt in scratch.glob("*/*/*"))
    except FileNotFoundError:
        return False


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("stages", "iterations"),
    [
        pytest.param(ONE_OF_A_KIND, 1, id="one-of-a-kind"),
        pytest.param(KILLS, 2, id="every-stage", marks=pytest.mark.slow),
    ],
)
def test_killed_in_stages_and_run_again(tmp_path, tiny_model, prefect_server, undisturbed, stages, iterations):
    root, home = str(tmp_path / "root"), tmp_path / "home"
    env = environment(home, PREFECT_API_URL=prefect_server)
    arguments = ["run", str(run_file(tmp_path, tiny_model, iterations=iterations)), "--root", root]
    committed: dict[str, str] = {}
    for stage in stages:
        killed_in(stage, arguments, env, home)
        now = contents(root)
        assert committed.items() <= now.items(), "a kill changed what was committed"
        committed = now
    posttrain(*arguments, env=env)
    assert contents(root) == contents(undisturbed(iterations))
    assert states(root) == states(undisturbed(iterations))


def test_a_second_run_finds_everything(tmp_path, tiny_model, prefect_server, undisturbed):
    root = undisturbed(1)
    before = contents(root)
    env = environment(tmp_path / "home", PREFECT_API_URL=prefect_server)
    output = posttrain("run", str(run_file(tmp_path, tiny_model, iterations=1)), "--root", root, env=env)
    assert "nothing to do" in output
    assert contents(root) == before


@pytest.mark.parametrize("homes", [("one", "two"), ("shared", "shared")])
def test_of_two_runners_one_commits_and_the_other_says_so(tmp_path, tiny_model, prefect_server, homes):
    root = str(tmp_path / "root")
    arguments = ["run", str(run_file(tmp_path, tiny_model, iterations=1)), "--root", root]
    first = start(*arguments, env=environment(tmp_path / homes[0], PREFECT_API_URL=prefect_server))
    second = start(*arguments, env=environment(tmp_path / homes[1], PREFECT_API_URL=prefect_server))
    outputs = [process.communicate(timeout=300)[0] for process in (first, second)]
    codes = sorted([first.returncode, second.returncode])
    assert codes == [0, 4], "\n".join(outputs)[-6000:]
    loser = outputs[0] if first.returncode == 4 else outputs[1]
    assert "was committed by launch" in loser
    assert "Nothing is lost" in loser
    assert sorted(states(root)) == ["00000.json", "00001.json"]
