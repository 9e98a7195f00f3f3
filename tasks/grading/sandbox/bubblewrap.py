"""Starting Python within bubblewrap, or openly without; and whether this machine lets us.

As root the mounts are made by root and the process takes a user id of its own before any foreign code runs; otherwise
in a user namespace.
"""

import contextlib
import functools
import itertools
import logging
import os
import platform
import py_compile
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from storage.errors import InputError
from tasks.grading.sandbox import inside
from tasks.grading.sandbox.limits import HOME_MIB, MIB, Limits
from tasks.grading.sandbox.process import CONTROL_BYTES, ContainedError, Process
from tasks.grading.sandbox.seccomp import seccomp_filter

log = logging.getLogger(__name__)
START_TIMEOUT_S = 60.0
NAMESPACES_COUNT = (5, 14)  # since then RLIMIT_NPROC counts within a user namespace
FIRST_UID, UIDS_A_PROCESS = 2_000_000_000, 64
EXAMINER_LIMITS = Limits(timeout_s=24 * 3600, memory_mib=2048, value_bytes=CONTROL_BYTES)
SWITCH = "run_untrusted_code_without_sandbox"
INSTALL = (
    "install bubblewrap 0.5 or newer (Debian, Ubuntu: apt-get install bubblewrap) and allow user namespaces "
    "(sysctl -w user.max_user_namespaces=10000, kernel.unprivileged_userns_clone=1, "
    "kernel.apparmor_restrict_unprivileged_userns=0 where they exist; in a container run as root with CAP_SYS_ADMIN), "
    f"or set params {{{SWITCH}: true}} of the grader in the run file to run what the model wrote with your own rights"
)
_slots = itertools.count()


class SandboxError(Exception):
    """A sandbox didn't start; says what it printed."""


class Launcher:
    """Starts answers' and examiners' processes; holds a folder with what they run. `close` removes it."""

    def __init__(self, sandboxed: bool) -> None:
        self.sandboxed = sandboxed
        self._folder = Path(tempfile.mkdtemp(prefix="posttrain-sandbox-"))
        code = self._folder / "code" / "inside"
        code.mkdir(parents=True)
        for source in sorted(Path(inside.__file__).parent.glob("*.py")):
            compiled = code / f"{source.stem}.pyc"
            py_compile.compile(str(source), str(compiled), doraise=True)
            compiled.chmod(0o644)
        for folder in (code, code.parent):
            folder.chmod(0o755)  # within, another user reads them
        for name, may_fork in (("candidate", False), ("examiner", True)):
            (self._folder / name).write_bytes(seccomp_filter(may_fork) if sandboxed else b"")
        self._as_root = os.geteuid() == 0 and _may_mount()

    def candidate(self, limits: Limits) -> Process:
        """A process for one answer, ready to load it."""
        return self._started("candidate", limits, limits.value_bytes * 2 + 8192)

    def examiner(self) -> Process:
        """A process that runs tests."""
        return self._started("examiner", EXAMINER_LIMITS, CONTROL_BYTES)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _started(self, name: str, limits: Limits, value_bytes: int) -> Process:
        """Raises `SandboxError` when it doesn't come up."""
        with (self._folder / name).open("rb") as filters:
            command, end = (self._wrapped(filters.fileno()), None) if self.sandboxed else ([], _end_group)
            code = "/code" if self.sandboxed else str(self._folder / "code")
            uid = FIRST_UID + os.getpid() * UIDS_A_PROCESS + next(_slots) % UIDS_A_PROCESS if self._drops else -1
            program = f"import sys; sys.path.insert(0, {code!r}); from inside.{name} import main; main()"
            python = [str(_interpreter()), "-I", "-S", "-B", "-X", "utf8", "-c", program]
            process = Process(
                [*command, *python, *map(str, self._bounded(limits).arguments(uid))],
                output_bytes=limits.output_bytes,
                value_bytes=value_bytes,
                pass_fds=[filters.fileno()] if self.sandboxed else [],
                end=end,
            )
        try:
            process.reply(time.monotonic() + START_TIMEOUT_S)
        except ContainedError as error:
            process.close()
            raise SandboxError(f"the sandbox {error}: {process.printed}") from error
        return process

    def _bounded(self, limits: Limits) -> Limits:
        """Without a limit on threads where the kernel would count all that its user runs anywhere."""
        own_count = self._as_root or kernel() >= NAMESPACES_COUNT
        return limits if self.sandboxed and own_count else replace(limits, threads=0)

    @property
    def _drops(self) -> bool:
        return self.sandboxed and self._as_root

    def _wrapped(self, filters: int) -> list[str]:
        """bubblewrap's command line up to the program."""
        users = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        if not self._as_root:
            users = ["--unshare-user", "--uid", "65534", "--gid", "65534"]
        return [
            *(_bubblewrap(), "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"),
            *("--unshare-cgroup-try", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL", *users),
            *("--seccomp", str(filters), *_mounts(), "--ro-bind", str(self._folder / "code"), "/code"),
            *("--perms", "1777", "--size", str(HOME_MIB * MIB), "--tmpfs", "/home", "--remount-ro", "/"),
            *("--chdir", "/home", "--setenv", "HOME", "/home", "--setenv", "TMPDIR", "/home"),
        ]


def kernel() -> tuple[int, ...]:
    """Linux's version, such as (5, 14)."""
    return tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])


@functools.cache
def check_sandbox() -> None:
    """Start a sandbox once. Raises `InputError`, saying what to install or set, where that can't be."""
    launcher = Launcher(sandboxed=True)
    try:
        process = launcher.candidate(Limits())
        try:
            said = process.ask(("load", ["import json, collections"], []), time.monotonic() + START_TIMEOUT_S)
        finally:
            process.close()
    except (SandboxError, ContainedError) as error:
        raise InputError(f"python_code: no sandbox can be made here: {error}; {INSTALL}") from error
    finally:
        launcher.close()
    if said[0] != "done":
        raise InputError(f"python_code: the sandbox doesn't run Python: {said[1:]}; {INSTALL}")


def _bubblewrap() -> str:
    found = shutil.which("bwrap")
    if found is None:
        raise InputError(f"python_code: there is no bwrap on the PATH to run code in a sandbox; {INSTALL}")
    return found


def _may_mount() -> bool:
    """Whether root may make namespaces without one for users: CAP_SYS_ADMIN is effective."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> 21 & 1)
    return False


@functools.cache
def _interpreter() -> Path:
    """The real file of this interpreter, outside of any virtual environment."""
    return Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()


@functools.cache
def _mounts() -> tuple[str, ...]:
    """The interpreter, its standard library and the system's libraries, read-only; two devices; nothing else."""
    folders = {Path(sys.base_prefix).resolve() / "lib", Path(sys.base_exec_prefix).resolve() / "lib", Path("/usr/lib")}
    links: list[str] = []
    for top in (Path("/lib"), Path("/lib64"), Path("/usr/lib64")):
        if top.is_symlink():
            links += ["--symlink", str(top.readlink()), str(top)]
        elif top.is_dir():
            folders.add(top)
    found = [str(path) for path in sorted({*folders, _interpreter()}) if path.exists()]
    # bubblewrap makes parents like the source's, and a home is closed to the user that the answer runs as.
    parents = sorted({str(parent) for path in [*found, "/dev/null"] for parent in Path(path).parents} - {"/"})
    open_parents = [word for path in parents for word in ("--perms", "0755", "--dir", path)]
    devices = [word for name in ("/dev/null", "/dev/urandom") for word in ("--dev-bind", name, name)]
    return (*open_parents, *(word for path in found for word in ("--ro-bind", path, path)), *links, *devices)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill an open process's group; what left the group lives on."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
