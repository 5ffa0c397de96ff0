"""The system calls that no job may make, and on what terms: one table for every sandbox.

It is a deny list: whatever a build does in earnest goes on working, and what is refused here is what a
sandbox has no use for and an attacker has: mounting, keys, loading code into the kernel, asynchronous I/O
that walks around filters, odd socket families. `ptrace` stays allowed: debuggers and coverage tools are
used in tests, and a job's processes share one uid anyway. `seccomp.py` turns the table into a program for
bubblewrap and into a profile for docker.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

LOW_WORD: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Masked:
    """Holds when the low 32 bits of argument `index`, and `mask`, are `value`.

    Only the low word: the kernel takes these arguments as 32 bits and ignores what a caller puts above.
    """

    index: int
    mask: int
    value: int


@dataclass(frozen=True, slots=True)
class Above:
    """Holds when the whole 64 bit argument `index` is greater than `value`."""

    index: int
    value: int


Condition = Masked | Above


@dataclass(frozen=True, slots=True)
class Rule:
    """Refuse `name` with `error` when every condition holds; without conditions: always."""

    name: str
    error: int = errno.EPERM
    when: tuple[Condition, ...] = ()


AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
_ALLOWED_FAMILIES: Final = (AF_UNIX, AF_INET, AF_INET6, AF_NETLINK)
_CLONE_NEWUSER: Final = 0x1000_0000
_TIOCSTI, _TIOCLINUX, _TIOCSETD = 0x5412, 0x541C, 0x5423


def _families(name: str) -> tuple[Rule, ...]:
    """Every family but the four; of netlink only routing (what `getaddrinfo` asks for a host's addresses)."""
    refused = [number for number in range(AF_NETLINK) if number not in _ALLOWED_FAMILIES]
    return (
        *(Rule(name, errno.EAFNOSUPPORT, (Masked(0, LOW_WORD, number),)) for number in refused),
        Rule(name, errno.EAFNOSUPPORT, (Above(0, AF_NETLINK),)),
        Rule(name, errno.EAFNOSUPPORT, (Masked(0, LOW_WORD, AF_NETLINK), Above(2, 0))),
    )


_NEVER: Final = (
    # mounting
    *("mount", "umount2", "pivot_root", "move_mount", "open_tree", "open_tree_attr", "fsopen", "fsconfig"),
    *("fsmount", "fspick", "mount_setattr", "setns", "quotactl", "quotactl_fd", "open_by_handle_at"),
    # the kernel's own keys, code and clocks
    *("keyctl", "add_key", "request_key", "bpf", "perf_event_open", "userfaultfd", "fanotify_init"),
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module"),
    *("swapon", "swapoff", "reboot", "acct", "settimeofday", "clock_settime", "syslog"),
    # old or rare, and often the way in
    *("kcmp", "lookup_dcookie", "nfsservctl", "vhangup", "iopl", "ioperm", "modify_ldt"),
)

RULES: Final[tuple[Rule, ...]] = (
    *(Rule(name) for name in _NEVER),
    # "Not there" rather than "forbidden": libraries then take the older way by themselves.
    *(Rule(name, errno.ENOSYS) for name in ("io_uring_setup", "io_uring_enter", "io_uring_register")),
    # clone3 takes its flags in memory, where no filter can see them; glibc falls back to clone on ENOSYS.
    Rule("clone3", errno.ENOSYS),
    Rule("clone", errno.EPERM, (Masked(0, _CLONE_NEWUSER, _CLONE_NEWUSER),)),
    Rule("unshare", errno.EPERM, (Masked(0, _CLONE_NEWUSER, _CLONE_NEWUSER),)),
    # Typing into a terminal that somebody else reads.
    *(Rule("ioctl", errno.EPERM, (Masked(1, LOW_WORD, code),)) for code in (_TIOCSTI, _TIOCLINUX, _TIOCSETD)),
    *_families("socket"),
    *_families("socketpair"),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a filter has to know of an architecture."""

    audit: int
    """`AUDIT_ARCH_*`, what the kernel says the call was made as."""
    libseccomp: str
    """The engine's name for it."""
    column: int
    """Of `NUMBERS`."""
    x32_from: int | None
    """First number of a second set of the same calls (x86's x32), refused as a whole."""


MACHINES: Final = {
    "x86_64": Machine(0xC000_003E, "SCMP_ARCH_X86_64", 0, 0x4000_0000),
    "aarch64": Machine(0xC000_00B7, "SCMP_ARCH_AARCH64", 1, None),
}

HIGHEST: Final = 469
"""The newest call judged here (Linux 6.18, both architectures): anything above is answered `ENOSYS`."""

NUMBERS: Final[dict[str, tuple[int | None, int | None]]] = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "setns": (308, 268),
    "unshare": (272, 97),
    "clone": (56, 220),
    "clone3": (435, 435),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "open_by_handle_at": (304, 265),
    "kcmp": (312, 272),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "vhangup": (153, 58),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "fanotify_init": (300, 262),
    "syslog": (103, 116),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "ioctl": (16, 29),
}
