"""A child never answers one request with another's answer, never hangs its parent, and never outlives it."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.errors import InputError, TransientError
from tasks._engines.child_process import ENGINES, LOGS_KEPT, Child, new_log, read_log
from tasks._engines.devices import gpus_of

# A process that speaks the protocol as vLLM's does, and misbehaves when asked to.
SPEAKER = """
import sys, time
from multiprocessing.connection import Connection

connection = Connection(int(sys.argv[1]))
while True:
    number, request, *arguments = connection.recv()
    if request == "close":
        break
    if request == "hang":
        time.sleep(600)
    if request == "refuse":
        connection.send((number, "error", "no such weights"))
        continue
    if request == "answer twice":
        connection.send((number, "done", "first"))
    for done in (1, 2):
        connection.send((number, "progress", (done, 2)))
    connection.send((number, "done", arguments))
"""


class Interrupted(BaseException):
    """What a stage's timeout throws into the thread."""


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    (tmp_path / "speaker.py").write_text(SPEAKER)
    child = Child("Speaker", "speaker", os.environ | {"PYTHONPATH": str(tmp_path)})
    yield child
    child.kill()
    child.close()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_answers_and_progress_arrive_and_a_refusal_leaves_it_usable(child: Child) -> None:
    seen: list[tuple[int, int]] = []
    assert child.ask("echo", 1, "two", on_progress=lambda done, total: seen.append((done, total))) == [1, "two"]
    assert seen == [(1, 2), (2, 2)]
    with pytest.raises(InputError, match=r"Speaker refuses to refuse: no such weights"):
        child.ask("refuse")
    assert child.alive
    assert child.ask("echo", 2) == [2]
    child.close()
    assert not child.alive and child._process.returncode == 0


@pytest.mark.parametrize("error", [RuntimeError, ConnectionError, InputError, KeyboardInterrupt])
def test_an_error_while_an_answer_is_pending_ends_the_child(child: Child, error: type[BaseException]) -> None:
    """Else the answer would stay in the pipe for the next request."""

    def fail(done: int, total: int) -> None:
        raise error("from the callback")

    with pytest.raises(error, match="from the callback"):
        child.ask("echo", 1, on_progress=fail)
    assert not child.alive and not running(child.pid)


def test_an_answer_of_another_number_is_refused(child: Child) -> None:
    assert child.ask("answer twice") == "first"
    with pytest.raises(TransientError, match=r"answered request 1, expected 2; the end of .*speaker-.*\.log"):
        child.ask("echo")
    assert not child.alive


def test_an_exception_thrown_into_a_thread_that_waits_lands_within_seconds(child: Child) -> None:
    ended: list[type[BaseException]] = []

    def ask() -> None:
        try:
            child.ask("hang")
        except BaseException as error:  # noqa: BLE001 - it is what the test looks at
            ended.append(type(error))

    waiting = threading.Thread(target=ask, daemon=True)
    waiting.start()
    time.sleep(0.3)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_long(waiting.ident), ctypes.py_object(Interrupted))
    waiting.join(5)
    assert ended == [Interrupted] and not running(child.pid)


def test_kill_frees_a_thread_that_waits_for_a_stopped_child(child: Child) -> None:
    ended: list[str] = []

    def ask() -> None:
        with pytest.raises(TransientError) as error:
            child.ask("hang")
        ended.append(str(error.value))

    child.ask("echo")
    os.kill(child.pid, signal.SIGSTOP)
    waiting = threading.Thread(target=ask, daemon=True)
    waiting.start()
    time.sleep(0.2)
    child.kill()
    waiting.join(5)
    assert len(ended) == 1 and "the Speaker process died with exit code -9" in ended[0]


def test_a_late_answer_and_a_child_that_hangs_up_without_ending_are_transient(
    child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TransientError, match="hasn't answered 'hang' in time"):
        child.ask("hang", timeout_s=0.2)
    assert not child.alive
    monkeypatch.setattr("tasks._engines.child_process.CLOSE_TIMEOUT_S", 0.3)
    (tmp_path / "deaf.py").write_text("import os, sys, time\nos.close(int(sys.argv[1]))\ntime.sleep(600)\n")
    deaf = Child("Deaf", "deaf", os.environ | {"PYTHONPATH": str(tmp_path)})
    with pytest.raises(TransientError, match=r"died with no exit code within 0 s"):
        deaf.ask("echo")
    deaf.close()
    assert not running(deaf.pid)


def test_the_log_of_a_process_that_lives_is_never_tidied_away(child: Child) -> None:
    child.ask("echo")
    log = child._log_path
    os.utime(log, (0, 0))

    def others() -> None:
        for _ in range(LOGS_KEPT + 5):
            new_log(ENGINES, "other").touch()

    others()
    assert log.exists() and len(list(log.parent.glob("other-*.log"))) <= LOGS_KEPT
    child.kill()
    others()
    assert not log.exists()
    assert read_log(log) == f"({log} is gone)"


PARENT = """
import os, threading, time
from tasks._engines.child_process import Child

children = []
start = lambda: children.append(Child("vLLM", "tasks._engines.vllm_child", os.environ))
thread = threading.Thread(target=start)
thread.start()
thread.join()
time.sleep(2)
print(children[0].pid, flush=True)
time.sleep(600)
"""


def test_kill_9_of_the_parent_takes_the_child_along(tmp_path: Path) -> None:
    """Started in a thread that has ended since, as a task's worker thread would have."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    child = int(parent.stdout.readline())
    assert running(child), "the child died with the thread that asked for it"
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(child)


def test_engines_without_a_gpu_each_are_refused_by_the_options_names() -> None:
    assert gpus_of(1, 2, 2, ["0", "1", "GPU-a", "GPU-b"]) == ["GPU-a", "GPU-b"]
    with pytest.raises(InputError, match=r"data_parallel 3 x engine.tensor_parallel 1 needs 3 GPUs, found 2 \(0, 1\)"):
        gpus_of(0, 3, 1, ["0", "1"])
