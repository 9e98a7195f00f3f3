"""Every block of deployments/graders.md is run as it stands: the files that it shows, then its commands, in order."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from graders_server import answers
from pipeline import REPOSITORY, environment

from flows.services.processes import free_port

PAGE = (REPOSITORY / "deployments/graders.md").read_text()
BLOCKS = re.findall(r"^```(\w[\w ]*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
# The files in the order of their blocks: their names stand in the text beside them.
FILES = ["outputs.jsonl", "my_graders.py", "my_async.py", "my_class.py", "my_server.py", "my_grade.sh"]
SHOWN = [content for language, content in BLOCKS if language != "sh"]
COMMANDS = [line for language, content in BLOCKS if language == "sh" for line in content.splitlines()]
EXPECTED = {
    "number": ["number/1: 3 of 3 rows graded", "mean 0.667"],
    "my_graders:brief": ["my_graders:brief/2: 3 of 3", "mean 0.600"],
    "my_async:polite": ["my_async:polite/0: 3 of 3", "passed 33.3%"],
    "my_class:Lengths": ["my_class:Lengths/1: 3 of 3", "mean 0.600"],
    "http": ["/grade/0: 3 of 3", "mean 0.667"],
    "command": ["./my_grade.sh/0: 3 of 3", "passed 100.0%"],
}


def test_every_file_is_named_in_the_page():
    assert len(SHOWN) == len(FILES)
    for name in FILES:
        assert f"`{name}`" in PAGE, name
    assert "](" not in PAGE


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    port = str(free_port())
    for name, content in zip(FILES, SHOWN, strict=True):
        (folder / name).write_text(content.replace("8123", port))
    programs = folder / "bin"
    programs.mkdir()
    (programs / "posttrain").write_text(f'#!/bin/sh\nexec {sys.executable} -m flows.cli "$@"\n')
    (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    env = environment(folder / "home", PATH=path, PYTHONPATH=str(REPOSITORY), TERM="dumb")
    servers = []
    yield folder, env, port, servers
    for server in servers:
        server.kill()
        server.wait()


def test_the_commands_do_what_they_say(reader):
    folder, env, port, servers = reader
    tried = []
    for line in COMMANDS:
        command = shlex.split(line.replace("8123", port))
        if command[-1] == "&":
            servers.append(subprocess.Popen(["python", *command[1:-1]], cwd=folder, env=env, executable=sys.executable))
            answers(f"http://127.0.0.1:{port}/grade")
        elif command[0] == "export":
            env |= [command[1].split("=", 1)]
        else:
            done = subprocess.run(
                line.replace("8123", port), shell=True, cwd=folder, env=env, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
            tried += [(command, done.stdout)] if command[0] == "posttrain" else []
    assert len(tried) == len(EXPECTED)
    for (command, output), (grader, expected) in zip(tried, EXPECTED.items(), strict=True):
        assert command[command.index("--grader") + 1].startswith(grader)
        for words in expected:
            assert words in output, output
