"""Server processes: who is ended, who isn't, and what a user is told about a port or a server that died."""

import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from flows.services import processes
from flows.services.health import wait
from storage.errors import InputError, TransientError

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


@pytest.fixture
def launch(tmp_path):
    """Start Python code as a service; whatever is left of it is killed at the end."""
    started = []

    def start(code):
        service = processes.start(tmp_path, "prefect", [sys.executable, "-c", code], dict(os.environ), folder=tmp_path)
        started.append(service)
        return service

    yield start
    for service in started:
        processes.end(service, grace_s=0)


def test_a_child_that_a_killed_server_left_is_ended_and_a_stranger_lives(launch, tmp_path):
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    service = launch(PARENT)
    child = int(_last_line(tmp_path))
    os.kill(service.pid, signal.SIGKILL)
    os.waitpid(service.pid, 0)
    assert not service.alive
    assert psutil.pid_exists(child)
    assert processes.end(service)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_server_that_ignores_term_is_killed(launch, tmp_path):
    service = launch(STUBBORN)
    _last_line(tmp_path)
    assert processes.end(service, grace_s=0.5)
    assert not service.alive
    assert not processes.end(service), "nothing ran, so nothing was ended"


def test_a_server_that_dies_is_reported_with_its_last_lines(launch, tmp_path):
    service = launch("import sys; print('no such table: flow'); sys.exit(3)")
    with pytest.raises(TransientError, match=r"(?s)prefect ended\. The end of .*prefect\.log:.*no such table: flow"):
        wait(tmp_path, service, lambda: False, timeout_s=20)


def test_a_server_that_never_answers_is_reported_after_the_time_limit(launch, tmp_path):
    service = launch(STUBBORN)
    with pytest.raises(TransientError, match="doesn't answer after 1 s"):
        wait(tmp_path, service, lambda: False, timeout_s=1)


def test_a_taken_port_names_itself_its_owner_and_the_option():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} is taken by process {os.getpid()} .*--s3-port PORT"):
            processes.claim_port(port, "--s3-port")


def test_a_port_that_everyone_listens_on_is_taken_too():
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        assert not processes.is_free(taken.getsockname()[1])


def test_zero_takes_a_free_port():
    assert processes.is_free(processes.claim_port(0, "--s3-port"))


def _last_line(home, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        text = processes.log_tail(processes.log_file(home, "prefect")).strip()
        if text and not text.startswith("---"):
            return text.splitlines()[-1]
        if text and len(text.splitlines()) > 1:
            return text.splitlines()[-1]
        time.sleep(0.05)
    raise AssertionError("the service printed nothing")
