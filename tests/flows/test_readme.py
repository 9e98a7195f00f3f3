"""Every command of README.md is run: here, or by the suite that is named."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from graders_server import answers
from pipeline import REPOSITORY, environment, posttrain, states
from s3_roots import s3_root

from flows.services.processes import free_port

# The programs that it shows, in their order.
PROGRAMS = ["my_graders.py", "my_server.py", "my_command.py"]
PORT = "8123"
README = (REPOSITORY / "README.md").read_text()
ELSEWHERE = {
    "make quickstart": "tests/flows/test_quickstart.py, by make test-slow",
    "make test": "what runs this",
    "make check": ".ci/run",
    "make bench": "tests/flows/test_quickstart.py, by make test-slow",
    "make test-slow": "what runs the two of them",
    "python my_server.py &": "the fixture",
    "posttrain up": "tests/flows/test_deployments.py, on free ports",
    "posttrain down": "tests/flows/test_deployments.py, on free ports",
}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


COMMANDS = [line.split(" #")[0].strip() for block in blocks("sh") for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def reader(tmp_path_factory, tiny_model, seaweed, prefect_server):
    """A folder with the files that README shows, and what its placeholders stand for once there is a run."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "prompts.jsonl").write_text(blocks("json")[0])
    document = yaml.safe_load(blocks("yaml")[0])
    # A model that answers in a second; everything else is as README has it.
    document["model"]["path"] = str(tiny_model)
    document["rollouts"]["engine"] = {"name": "transformers", "max_model_len": 128}
    (folder / "mine.yaml").write_text(yaml.safe_dump(document))
    port = str(free_port())
    for name, content in zip(PROGRAMS, blocks("python"), strict=True):
        assert f"`{name}`" in README
        (folder / name).write_text(content.replace(PORT, port))
    # As after `source .venv/bin/activate`.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with pytest.MonkeyPatch.context() as patch:
        root = s3_root(seaweed, patch)
        patch.chdir(folder)
        env = environment(folder / "home", PREFECT_API_URL=prefect_server, PATH=path)
        server = subprocess.Popen([sys.executable, "my_server.py"], cwd=folder)
        answers(f"http://127.0.0.1:{port}/grade")
        yield {"root": root, "env": env, "folder": folder, "port": port}
        server.kill()
        server.wait()


def test_every_command_is_run_somewhere():
    assert len(COMMANDS) > 12
    for command in COMMANDS:
        assert command in ELSEWHERE or command.startswith("posttrain "), command


def test_the_commands_do_what_they_say(reader):
    root, env = reader["root"], reader["env"]
    for command in COMMANDS:
        if command in ELSEWHERE:
            continue
        arguments = [
            part.replace("s3://posttrain/runs", root).replace(PORT, reader["port"]) for part in shlex.split(command)[1:]
        ]
        if {"POLICY", "ROLLOUT", "ARTIFACT"} & set(arguments):
            steps = states(root, "mine")["00002.json"]["steps"]
            known = {"POLICY": steps["policy_update"], "ARTIFACT": steps["rollouts"], "ROLLOUT": rollout(root, steps)}
            arguments = [known.get(part, part) for part in arguments]
        # A run as a reader starts it; the short commands without the seconds that starting takes.
        assert posttrain(*arguments, env=env, folder=reader["folder"], fresh=arguments[0] == "run").strip()
    assert list(states(root, "mine")) == ["00000.json", "00001.json", "00002.json"]


def test_the_schema_is_json(reader):
    assert json.loads(posttrain("schema", env=reader["env"]))["title"] == "RunConfig"


def test_no_placeholder_is_left():
    assert not re.findall(r"[A-Z]+_TABLE", README)


def rollout(root, steps):
    from storage.artifacts import Artifact

    return Artifact.at(root, steps["rollouts"]).read("rollouts")["rollout_id"][0]


def test_files_that_readme_links_to_exist():
    for target in re.findall(r"\]\(([^)h#][^)]*)\)", README):
        assert (REPOSITORY / target).exists(), target


def test_readme_holds_no_path_of_a_machine():
    assert str(REPOSITORY) not in README
    assert str(Path.home()) not in README
