"""What one answer may use, and the file system that it sees."""

from dataclasses import dataclass

HOME_MIB = 16
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one answer.

    `timeout_s` is wall time for all its tests, and CPU time; the start of the sandbox isn't counted. `memory_mib` is
    address space, an interpreter's own 30 MiB among it. `threads` counts the first one. `output_bytes` is what it may
    print, `value_bytes` one value that it returns.
    """

    timeout_s: float = 10.0
    memory_mib: int = 512
    threads: int = 32
    output_bytes: int = 1_000_000
    value_bytes: int = 1_000_000

    def arguments(self, uid: int) -> tuple[int, ...]:
        """The process's arguments, by which it binds itself (`inside.channel.start`)."""
        cpu_s = int(self.timeout_s) + 1
        return uid, self.memory_mib * MIB, cpu_s, HOME_MIB * MIB, self.threads, self.value_bytes
