"""Python code from a model, run and tested where it can reach nothing and can't forge a verdict.

**Who decides.** The tests never share a process with the answer, so there is no secret to find, no assertion to patch
and no exit code that counts. An answer's process (`inside/candidate.py`) loads its code and, over a pipe, is asked to
call its functions on arguments; it sees those, one call at a time, and can only ever reply with a value. Tests that are
pairs of arguments and result are compared here. Tests that are source (`check(candidate)`, assert statements) run in a
second process (`inside/examiner.py`) where the function is a stand-in that forwards its calls. What the answer's
process prints, how it ends and what it writes into the pipe are values at most: `inside/codec.py` reads plain values
and nothing else. When the process ends, stalls or talks out of turn, the verdict is 0 with the reason.

**What it can reach.** Both processes live in bubblewrap (`bubblewrap.py`): own namespaces for processes, network, IPC,
host name and, without root, users; a root file system that holds the interpreter, its libraries, /dev/null and
/dev/urandom, all read-only; no /proc, no /sys; a home in memory of `HOME_MIB`; an empty environment; no capability; its
own user id (as root: one that owns nothing, taken in `inside/channel.py` before any foreign code runs). A seccomp
filter (`seccomp.py`) refuses new processes, sockets, memory outside of the address space, further namespaces and what
else would step around a limit.

**Limits.** Wall time: the grader's clock, then SIGKILL to the whole process namespace. CPU time, address space
(RLIMIT_AS, not a cgroup: the answer is one process, so its limit is the sandbox's), file size, descriptors: resource
limits. Processes: none but its own, by seccomp, which binds root too; threads: RLIMIT_NPROC, which binds because the
user isn't root. Output and values: read up to a bound, then killed.

**What it isn't.** Arguments and results are copied: identity (`f(x) is x`) and aliasing between arguments are lost,
changes of lists, dicts and sets passed in are carried back. Values of other types (one's own classes, functions,
Decimal) can't leave, so tests must compare parts of them. An answer may remember earlier calls of the same test. The
number of files in its home is bounded by time only. A hole in the kernel is a hole here: for hostile users add a
virtual machine. Where the grader itself is root without the right to mount, or the kernel older than 5.14 and it
isn't root, threads are bounded by memory only.
"""
