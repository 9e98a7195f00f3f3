"""The system calls that a sandboxed process is refused, as a seccomp filter (classic BPF, seccomp(2))."""

import errno
import platform
import struct

from storage.errors import InputError

LOAD, JUMP_EQUAL, JUMP_ANY_BIT, JUMP_AT_LEAST, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
NUMBER_AT, ARCHITECTURE_AT, FIRST_ARGUMENT_AT = 0, 4, 16
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
CLONE_THREAD, CLONE_NAMESPACES = 0x00010000, 0x7E020080
FIRST_X32_NUMBER = 0x40000000

# Numbers of the calls by architecture: (x86_64, aarch64).
REFUSED = {
    # What would reach out, or pass descriptors in. socketpair stays: asyncio needs it.
    "socket": (41, 198),
    # Memory that no address space counts.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # Calls in a ring are never filtered.
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # Other processes' memory and descriptors.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # Namespaces and mounts.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    # Wide surfaces of the kernel that no answer needs.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "personality": (135, 92),
    "syslog": (103, 116),
    "quotactl": (179, 60),
    "acct": (163, 89),
    "swapon": (167, 224),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
}
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
CLONE, CLONE3, FORKS_OF_X86 = (56, 220), 435, (57, 58)


def seccomp_filter(may_fork: bool, machine: str = "") -> bytes:
    """The filter for bubblewrap's --seccomp: refused calls fail with EPERM, unless `may_fork` new processes too.

    Threads start as ever. Raises `InputError` for a machine whose numbers aren't known.
    """
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        raise InputError(
            f"python_code: the sandbox has system call filters for {sorted(ARCHITECTURES)}, this machine is {machine}; "
            "grade on one of those"
        )
    column, architecture = ARCHITECTURES[machine]
    refuse, unknown = ERROR | errno.EPERM, ERROR | errno.ENOSYS
    program = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (JUMP_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
        (JUMP_AT_LEAST, 0, 1, FIRST_X32_NUMBER),
        (RETURN, 0, 0, KILL),
        *_on(CLONE3, unknown),  # its flags lie in memory, which a filter can't read; the C library then calls clone
    ]
    for numbers in REFUSED.values():
        program += _on(numbers[column], refuse)
    if not may_fork and machine == "x86_64":
        for number in FORKS_OF_X86:
            program += _on(number, refuse)
    threads_only = [] if may_fork else [(JUMP_ANY_BIT, 1, 0, CLONE_THREAD), (RETURN, 0, 0, refuse)]
    flags = [(LOAD, 0, 0, FIRST_ARGUMENT_AT), (JUMP_ANY_BIT, 0, 1, CLONE_NAMESPACES), (RETURN, 0, 0, refuse)]
    program += [(JUMP_EQUAL, 0, len(flags + threads_only), CLONE[column]), *flags, *threads_only]
    program.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def _on(number: int, action: int) -> list[tuple[int, int, int, int]]:
    return [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, action)]
