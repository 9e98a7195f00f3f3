"""Starts a module in several processes that train together, and sees to it that none outlives its parent."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from storage.errors import StageFailed

LAUNCHER_PID = "POSTTRAIN_LAUNCHER_PID"
LINES_PER_RANK, LINES_OF_OTHERS = 12, 30
CLOSE_TIMEOUT_S = 10.0
POLL_S = 0.2
PR_SET_PDEATHSIG = 1


def run_in_processes(
    module: str, job: Path, processes: int, log: Path, *, watch: Callable[[], None] = lambda: None
) -> None:
    """Runs `python -m module JOB` in so many processes of `torchrun` on this machine; their output goes to `log`.

    Returns when all have ended well. On a CPU they share this process's threads. Raises `StageFailed` with the last
    lines of `log` when one fails: the others are ended then. They are ended too when this call is interrupted or
    this process is killed. The module must call `tasks._training.parallel.join_world` early. `watch` is called a
    few times a second while they run.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", __name__, str(os.getpid()), "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", str(processes), "-m", module, str(job)]
    with log.open("wb") as output:
        launcher = subprocess.Popen(
            command,
            env=process_environment(os.environ, processes),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process only, which ends them in order
        )
        try:
            while launcher.poll() is None:  # in slices: an exception thrown into a thread lands between two calls
                time.sleep(POLL_S)
                watch()
        finally:
            _end(launcher)
    if launcher.returncode:
        what = f"{module} failed in {processes} processes, exit code {launcher.returncode}; the end of {log}:"
        raise StageFailed("\n".join([what, *last_words(log.read_text(errors="replace"))]))


def last_words(output: str) -> list[str]:
    """The last lines of every rank, in order: the others' complaints about one that died don't push out its own."""
    kept: list[str] = []
    said: Counter[str] = Counter()
    for line in reversed(output.splitlines()):
        rank = re.match(r"\[rank\d+\]:", line)
        speaker = rank[0] if rank else ""
        said[speaker] += 1
        if said[speaker] <= (LINES_PER_RANK if rank else LINES_OF_OTHERS):
            kept.append(line)
    return kept[::-1]


def process_environment(environment: Mapping[str, str], processes: int) -> dict[str, str]:
    """Our own packages first, and an equal share of the threads for each process."""
    root = str(Path(__file__).parents[2])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = int(environment.get("OMP_NUM_THREADS") or cores)
    return dict(environment) | {
        "PYTHONPATH": os.pathsep.join(part for part in (root, environment.get("PYTHONPATH", "")) if part),
        "OMP_NUM_THREADS": str(max(1, threads // processes)),
        "PYTHONUNBUFFERED": "1",
    }


def die_with_parent(parent_pid: int) -> None:
    """Has the kernel kill this process when its parent dies, a `kill -9` included (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # the parent died before the line above took hold
        os._exit(1)


def _end(launcher: "subprocess.Popen[bytes]") -> None:
    """Ends the launcher, which ends its processes; what it doesn't within ten seconds dies with it."""
    if launcher.poll() is None:
        launcher.terminate()
        try:
            launcher.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            launcher.kill()
            launcher.wait(CLOSE_TIMEOUT_S)


def main() -> None:
    """`torchrun`, bound to the life of the process that started it: PARENT_PID, then torchrun's own arguments."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    die_with_parent(int(sys.argv[1]))
    os.environ[LAUNCHER_PID] = str(os.getpid())
    try:
        torchrun(sys.argv[2:])
    except ChildFailedError:  # the process's own words are in the log: torchrun's would push them out of its end
        sys.exit(1)


if __name__ == "__main__":
    main()
