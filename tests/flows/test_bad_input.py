"""What a user gets wrong: one clear line, the right exit code, nothing lost. Each through the real command line."""

import json
import os
import shutil
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pipeline import REPOSITORY, contents, environment, posttrain, run_file, start
from s3_roots import s3_root
from servers import RestartableSeaweed

BAD_INPUT, STAGE_FAILED = 2, 3


def last_line(output):
    return [line for line in output.splitlines() if line.startswith("posttrain: ")][-1]


def chats(folder, rows):
    path = folder / "chats.jsonl"
    path.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))
    return {"sources": [{"path": str(path), "messages_field": "messages", "verifier": {"name": "haiku"}}]}


def good(n):
    return {"messages": [{"role": "user", "content": f"question number {n} about {n * 17} things"}]}


@pytest.fixture
def env(tmp_path, prefect_server):
    return environment(tmp_path / "home", PREFECT_API_URL=prefect_server)


def refused(tmp_path, env, model, message, **changes):
    """Run the tiny campaign with changes; it has to end with exit code 2 and one line that holds the message."""
    root = tmp_path / "root"
    output = posttrain("run", str(run_file(tmp_path, model, **changes)), "--root", str(root), env=env, code=BAD_INPUT)
    assert message in last_line(output), output[-3000:]
    assert "Traceback" not in output
    return output


def test_an_unknown_key_is_named_with_the_nearest(tmp_path, env, tiny_model):
    refused(tmp_path, env, tiny_model, "unknown key 'filterng', did you mean 'filtering'?", filterng={})


def test_a_wrong_type(tmp_path, env, tiny_model):
    refused(tmp_path, env, tiny_model, "iterations: Input should be a valid integer", iterations="three")


def test_a_missing_run_file(env):
    assert "no such run file" in posttrain("run", "nowhere.yaml", env=env, code=BAD_INPUT)


def test_a_missing_source_file(tmp_path, env, tiny_model):
    source = {"path": "nowhere.jsonl", "prompt_field": "q", "verifier": {"name": "number"}}
    refused(tmp_path, env, tiny_model, "nowhere.jsonl", curate={"sources": [source]})


def test_a_grader_that_is_not_there_or_not_yet(tmp_path, env, tiny_model):
    missing = {"graders": [{"grader": "verifier"}, {"grader": "numbr", "from_iteration": 2}]}
    refused(tmp_path, env, tiny_model, "no verifier 'numbr'", grading=missing)
    late = {"graders": [{"grader": "verifier", "from_iteration": 2}]}
    refused(tmp_path, env, tiny_model, "is active in iteration 0", grading=late)
    assert not (tmp_path / "root").exists()


def test_a_missing_column_names_those_that_are_there(tmp_path, env, tiny_model):
    pq.write_table(pa.table({"text": ["a"], "label": ["b"]}), tmp_path / "p.parquet")
    source = {"path": str(tmp_path / "p.parquet"), "prompt_field": "prompt", "verifier": {"name": "number"}}
    output = refused(tmp_path, env, tiny_model, "prompt", curate={"sources": [source]})
    assert "text" in last_line(output)
    assert "label" in last_line(output)


def test_an_empty_prompt_set(tmp_path, env, tiny_model):
    refused(tmp_path, env, tiny_model, "chats.jsonl", curate=chats(tmp_path, []))


BAD_ROWS = {
    "not_utf8": b'{"messages": [{"role": "user", "content": "caf\xe9"}]}\n',
    "no_user_turn": {"messages": [{"role": "assistant", "content": "no question"}]},
    "bad_type": {"messages": "not a list"},
    "missing_field": {"other": 1},
}


def test_bad_rows_are_set_aside(tmp_path, env, tiny_model):
    few = chats(tmp_path, [*(good(n) for n in range(40)), *BAD_ROWS.values()])
    path = run_file(tmp_path, tiny_model, iterations=1, curate={**few, "eval_prompts": 8})
    output = posttrain("run", str(path), "--root", str(tmp_path / "root"), env=env)
    assert "4 rows set aside" in output
    for reason in BAD_ROWS:
        assert f"{reason} 1" in output


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_too_many_bad_rows_are_refused(tmp_path, env, tiny_model, reason):
    many = chats(tmp_path, [good(1), BAD_ROWS[reason]])
    output = refused(tmp_path, env, tiny_model, "max_rejected_fraction", curate=many)
    assert reason in last_line(output)


def test_a_model_folder_without_weights(tmp_path, env, tiny_model):
    bare = tmp_path / "model"
    shutil.copytree(tiny_model, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    refused(tmp_path, env, bare, "no weights there")


def test_a_store_that_is_away(tmp_path, env, tiny_model):
    env |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    path = str(run_file(tmp_path, tiny_model))
    output = posttrain("run", path, "--root", "s3://bucket/x", env=env, code=BAD_INPUT)
    assert "can't be reached at http://127.0.0.1:9" in last_line(output)


def test_wrong_credentials(tmp_path, env, tiny_model, seaweed):
    env |= {"AWS_ENDPOINT_URL": seaweed.endpoint_url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    path = str(run_file(tmp_path, tiny_model))
    output = posttrain("run", path, "--root", f"s3://{seaweed.bucket}/x", env=env, code=BAD_INPUT)
    assert "credentials" in last_line(output)


def test_an_mlflow_server_that_is_away(tmp_path, env, tiny_model):
    env |= {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    refused(tmp_path, env, tiny_model, "MLflow at http://127.0.0.1:9 doesn't answer")


def test_a_full_disk_fails_the_stage_and_loses_nothing(tmp_path, env, tiny_model):
    """The root is a file system of 150 KiB in a namespace of its own, so that it fills up for real."""
    root = tmp_path / "small"
    root.mkdir()
    path = run_file(tmp_path, tiny_model, iterations=1)
    kept = tmp_path / "kept"
    run = f"{sys.executable} -m flows.cli run {path} --root {root}"
    script = f"mount -t tmpfs -o size=150k tmpfs {root} && {run}; code=$?; cp -r {root} {kept}; exit $code"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=240
    )
    output = done.stdout + done.stderr
    assert done.returncode == STAGE_FAILED, output[-3000:]
    assert "no space left" in last_line(output)
    assert "Traceback" not in output
    assert contents(str(kept))
    posttrain("run", str(path), "--root", str(kept), env=env)
    assert contents(str(kept))


def test_a_disk_that_fills_up_below_everything(tmp_path, env, tiny_model):
    """Home and store on one file system, both databases in it; it is filled in mid-run, then there is room again."""
    del env["PREFECT_API_URL"]
    small, path = tmp_path / "small", run_file(tmp_path, tiny_model, iterations=1)
    small.mkdir()
    env["POSTTRAIN_HOME"] = str(small / "home")
    run = f"{sys.executable} -m flows.cli run {path}"
    script = f"""
        mount -t tmpfs -o size=400m tmpfs {small} || exit 90
        {run} > {tmp_path}/first.log 2>&1 & runner=$!
        until ls {small}/home/store/artifacts/grading/*/_manifest.json; do
            kill -0 $runner || exit 91; sleep 0.1
        done
        dd if=/dev/zero of={small}/filler bs=4k
        wait $runner; echo first run $?
        rm {small}/filler
        {run} > {tmp_path}/second.log 2>&1; echo second run $?
    """
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=480
    )
    first, second = ((tmp_path / name).read_text() for name in ("first.log", "second.log"))
    assert f"first run {STAGE_FAILED}" in done.stdout, first[-6000:] + done.stderr[-2000:]
    assert "no space left" in last_line(first)
    assert "Traceback" not in first
    assert "second run 0" in done.stdout, second[-6000:]
    assert "cached" in second


def test_a_disk_without_room_is_refused_at_once(tmp_path, env, tiny_model):
    small = tmp_path / "small"
    small.mkdir()
    command = f"{sys.executable} -m flows.cli run {run_file(tmp_path, tiny_model)}"
    script = f"mount -t tmpfs -o size=1m tmpfs {small} && {command}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        cwd=REPOSITORY,
        env=env | {"POSTTRAIN_HOME": str(small)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == BAD_INPUT
    assert "MiB free, a run needs 64 MiB" in last_line(done.stdout + done.stderr)


def test_a_store_lost_on_the_way_is_waited_for(tmp_path, env, tiny_model):
    """SeaweedFS is ended in the middle of the run and comes back: everything is tried again, the run ends well."""
    server = RestartableSeaweed(tmp_path / "fragile")
    with pytest.MonkeyPatch.context() as patch:
        root = s3_root(server.start(), patch)
        env |= {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")}
        process = start("run", str(run_file(tmp_path, tiny_model, iterations=1)), "--root", root, env=env)
        try:
            while not any(artifact.startswith("grading/") for artifact in contents(root)):
                assert process.poll() is None
                time.sleep(0.2)
            server.stop()
            time.sleep(5)
            server.start()
            output = process.communicate(timeout=300)[0]
            assert process.returncode == 0, output[-3000:]
            assert "Trying again" in output
        finally:
            server.stop()
