"""What an answer finds in its sandbox, what stays of it, and what happens where none can be made."""

import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from code_samples import ADD, GOOD, grade, left_over, sample
from hostile_answers import CONTAINED

from storage.errors import InputError
from tasks.grading.config import GraderConfig
from tasks.grading.graders import open_grader
from tasks.grading.sandbox import bubblewrap
from tasks.grading.sandbox.bubblewrap import SWITCH

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap isn't installed")


@pytest.fixture(autouse=True)
def fresh_check():
    """Whether a sandbox can be made is found out once a process; a test may change the answer."""
    yield
    bubblewrap.check_sandbox.cache_clear()


@pytest.fixture(scope="module")
def grader():
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap isn't installed")
    opened = open_grader(GraderConfig(grader="python_code"))
    yield opened
    opened.close()


def test_no_file_of_the_host_can_be_seen(grader, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("3")
    tmp_path.chmod(0o755)
    secret.chmod(0o644)
    code = f"def add(a, b):\n    return int(open({str(secret)!r}).read())\n"
    walk = (
        "import os\ndef add(a, b):\n"
        "    folders = {path for path, _, files in os.walk('/') if files}\n"
        "    return sorted(path for path in folders if not path.startswith(('/usr/lib', '/lib')))"
    )
    known = ("/code/inside", "/dev", "/lib64", "/usr/lib64", str(Path(sys.base_prefix).resolve()))
    tests = f"assert not [path for path in add(1, 2) if not path.startswith({known})], add(1, 2)"
    read, walked = grade(grader, sample(code, **ADD), sample(walk, timeout_s=60, tests=tests))
    assert "No such file" in read.detail["error"]
    assert walked.passed, walked.detail


def test_descriptors_environment_and_processes_of_the_host_are_not_there(grader, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    code = (
        "import os\ndef add(a, b):\n"
        "    kinds = []\n    for number in range(64):\n        try:\n            os.fstat(number)\n"
        "            kinds.append(number)\n        except OSError:\n            pass\n"
        "    return sorted(os.environ), kinds, os.getpid() < 10, os.path.exists('/proc'), os.getuid() != 0"
    )
    names = ["HOME", "LC_CTYPE", "PWD", "TMPDIR"]
    tests = f"found = add(1, 2)\nassert found == ({names}, [0, 1, 2, 3, 4], True, False, True), found"
    (answer,) = grade(grader, sample(code, tests=tests))
    assert answer.passed, answer.detail


@needs_bubblewrap
def test_a_killed_grader_takes_its_sandboxes_along(tmp_path):
    """The process that grades dies by SIGKILL while an answer sleeps: nothing of the sandbox stays."""
    script = (
        "from code_samples import *\nfrom tasks.grading.config import GraderConfig\n"
        "from tasks.grading.graders import open_grader\n"
        "grader = open_grader(GraderConfig(grader='python_code'))\n"
        "grade(grader, sample('import time\\ntime.sleep(600)', timeout_s=600, **ADD))"
    )
    folder = Path(__file__).parents[1] / "support"
    environment = os.environ | {"PYTHONPATH": f"{folder}:{folder.parents[1]}", "TMPDIR": str(tmp_path)}
    running = subprocess.Popen([sys.executable, "-c", script], env=environment)
    mark = f"{tmp_path}/posttrain-sandbox"
    until = time.monotonic() + 60
    # The first sandbox is the check's; the answer's is there when its time limit, 601 s, is an argument.
    while not left_over(" 601 ", patience_s=0) and time.monotonic() < until:
        time.sleep(0.1)
    assert left_over(mark, patience_s=0)
    running.kill()
    running.wait()
    assert left_over(mark, " 601 ") == []


@needs_bubblewrap
@pytest.mark.parametrize(
    "name", ["fork bomb by clone", "makes a socket", "writes outside", "kills its parent", "full home"]
)
def test_without_root_the_sandbox_is_a_user_namespace(name, monkeypatch):
    monkeypatch.setattr(bubblewrap, "_may_mount", lambda: False)
    unprivileged = open_grader(GraderConfig(grader="python_code"))
    try:
        hostile, good = grade(unprivileged, sample(CONTAINED[name][0], **ADD), sample(GOOD, timeout_s=60, **ADD))
    finally:
        unprivileged.close()
    assert hostile.score == 0 and good.passed
    assert left_over("inside.candidate") == []


def test_where_no_sandbox_can_be_made_the_grader_says_what_to_do(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    bubblewrap.check_sandbox.cache_clear()
    with pytest.raises(InputError, match=rf"no bwrap.*apt-get install bubblewrap.*{SWITCH}"):
        open_grader(GraderConfig(grader="python_code"))
    with pytest.raises(InputError, match="apt-get install bubblewrap"):
        grade(open_grader(GraderConfig()), sample(GOOD, **ADD))


def test_a_sandbox_that_does_not_start_is_refused(monkeypatch, tmp_path):
    """A bwrap that fails as it does where user namespaces are forbidden."""
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    bubblewrap.check_sandbox.cache_clear()
    with pytest.raises(InputError, match=r"No permissions to create.*max_user_namespaces"):
        open_grader(GraderConfig(grader="python_code"))


def test_the_switch_runs_without_a_sandbox_and_says_so(monkeypatch, caplog):
    monkeypatch.setenv("PATH", "/nowhere")
    bubblewrap.check_sandbox.cache_clear()
    opened = open_grader(GraderConfig(grader="python_code", params={SWITCH: True}))
    with caplog.at_level(logging.WARNING):
        again = open_grader(GraderConfig(grader="python_code", params={SWITCH: True}))
        again.close()
    assert SWITCH in caplog.text
    try:
        loop = sample("while True:\n    pass", timeout_s=1, **ADD)
        answers = grade(opened, sample(GOOD, timeout_s=60, **ADD), loop, sample("import os\nos._exit(0)", **ADD))
    finally:
        opened.close()
    assert [answer.score for answer in answers] == [1, 0, 0]
    assert left_over(str(opened._launcher._folder)) == []


def test_a_prompt_cannot_switch_the_sandbox_off(grader):
    with pytest.raises(InputError, match="only params of the grader in the run file may"):
        grade(grader, sample(GOOD, **ADD, **{SWITCH: True}))
