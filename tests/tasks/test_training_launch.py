"""Processes that train together: they share the threads, fail with a reason, and never outlive their parent."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import launched
import psutil
import pytest

from storage.errors import StageFailed
from tasks._training.launch import last_words, process_environment, run_in_processes

SUPPORT = str(Path(launched.__file__).parent)
DEADLINE_S = 120


@pytest.fixture(autouse=True)
def support_on_the_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", SUPPORT)


def write_job(folder, what):
    job = folder / "job"
    job.write_text(what)
    return job


def ranks(folder):
    """The process ids of both ranks, once they run."""
    paths = [folder / "rank-0", folder / "rank-1"]
    wait_until(lambda: all(path.is_file() and path.read_text() for path in paths))
    return [int(path.read_text().split()[0]) for path in paths]


def wait_until(true):
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def gone(pids):
    return all(not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in pids)


def test_a_failure_ends_all_and_comes_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with pytest.raises(StageFailed, match=r"(?s)launched failed in 2 processes.*rank one has had enough"):
        run_in_processes("launched", write_job(tmp_path, "fail"), 2, tmp_path / "logs" / "two.log")
    assert gone(ranks(tmp_path))
    assert (tmp_path / "rank-0").read_text().split()[1] == "3"


def test_an_interrupt_ends_all(tmp_path):
    def interrupt(thread):
        ranks(tmp_path)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(InterruptedError))

    threading.Thread(target=interrupt, args=(threading.get_ident(),)).start()
    with pytest.raises(InterruptedError):
        run_in_processes("launched", write_job(tmp_path, "wait"), 2, tmp_path / "two.log")
    pids = ranks(tmp_path)
    wait_until(lambda: gone(pids))


def test_a_killed_parent_takes_all_along(tmp_path):
    job = write_job(tmp_path, "wait")
    code = (
        "from pathlib import Path; from tasks._training.launch import run_in_processes; "
        f"run_in_processes('launched', Path({str(job)!r}), 2, Path({str(tmp_path / 'two.log')!r}))"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), SUPPORT])
    parent = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path})
    pids = ranks(tmp_path)
    launcher = psutil.Process(pids[0]).ppid()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: gone([*pids, launcher]))


def test_threads_are_shared_out():
    assert process_environment({"OMP_NUM_THREADS": "8"}, 3)["OMP_NUM_THREADS"] == "2"
    assert process_environment({"OMP_NUM_THREADS": "1"}, 4)["OMP_NUM_THREADS"] == "1"
    assert int(process_environment({}, 1)["OMP_NUM_THREADS"]) >= 1


def test_the_cause_is_told_among_what_other_ranks_say_after_it():
    cause = ["[rank1]: Traceback", "[rank1]: StageFailed: the loss is nan"]
    after = [f"[rank{rank}]: frame {line}" for line in range(50) for rank in (0, 2)]
    found = last_words("\n".join(["start", *cause, *after, "torchrun: failed"]))
    assert found[:3] == ["start", *cause]
    assert found[-3:] == ["[rank0]: frame 49", "[rank2]: frame 49", "torchrun: failed"]
    assert len(found) < 30
    assert last_words("\n".join(map(str, range(99)))) == [str(line) for line in range(69, 99)]
