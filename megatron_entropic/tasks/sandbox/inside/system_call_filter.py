"""System calls that an answer must not make: a seccomp filter, whose refusals are errors that the answer sees.

In a sandbox of namespaces it narrows the kernel that the answer can reach. Where no namespaces are allowed (`ALONE`), it is what
is left: no process, connection, signal or file can be made; files can still be read.
"""

import ctypes
import errno
import os
import struct

from .system_calls import PR_SET_SECCOMP, control_process

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
"""Numbers from here on are x86_64's calls under other names."""

_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    # name: number on x86_64, on aarch64
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "fanotify_init": (300, 262),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "socket": (41, 198),
    "pidfd_getfd": (438, 438), "kexec_load": (246, 104), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "swapon": (167, 224), "reboot": (169, 142), "acct": (163, 89), "quotactl": (179, 60),
    "syslog": (103, 116), "clock_settime": (227, 112), "settimeofday": (164, 170),
}  # fmt: skip
_NUMBERS_ALONE: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "kill": (62, 129), "tkill": (200, 130),
    "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424),
    "creat": (85, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "link": (86, None),
    "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "mknod": (133, None), "mknodat": (259, 33),
    "truncate": (76, 45), "ftruncate": (77, 46), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "fchmodat2": (452, 452), "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "utime": (132, None), "utimes": (235, None), "utimensat": (280, 88), "futimesat": (261, None),
    "connect": (42, 203), "setpriority": (141, 140),
}  # fmt: skip
_CLONE, _CLONE3, _PRLIMIT, _OPEN, _OPENAT, _OPENAT2 = (56, 220), (435, 435), (302, 261), (2, None), (257, 56), (437, 437)
_NEW_NAMESPACES, _CLONE_THREAD = 0x7E020080, 0x10000
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16


class _Program:
    """Instructions of the filter, in their order."""

    def __init__(self) -> None:
        self.code = b""

    def add(self, operation: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        self.code += struct.pack("=HBBI", operation, if_true, if_false, value)

    def refuse(self, number: int, error: int = errno.EPERM) -> None:
        """The call `number`, whatever its arguments."""
        self.add(_EQUAL, number, 0, 1)
        self.add(_RETURN, 0x50000 | error)

    def refuse_where(self, number: int, argument: int, bits: int, *, present: bool = True) -> None:
        """The call `number` where its argument has any of `bits` (or, not `present`, none of them)."""
        self.add(_EQUAL, number, 0, 4)
        self.add(_LOAD, _ARGUMENTS_AT + 8 * argument)  # the lower half: all machines here are little-endian
        self.add(_ANY_BIT, bits, 0 if present else 1, 1 if present else 0)
        self.add(_RETURN, 0x50000 | errno.EPERM)
        self.add(_LOAD, _NUMBER_AT)


def _program(*, alone: bool) -> bytes:
    machine = os.uname().machine
    column = list(_ARCHITECTURES).index(machine)
    program = _Program()
    program.add(_LOAD, _ARCHITECTURE_AT)
    program.add(_EQUAL, _ARCHITECTURES[machine], 1, 0)
    program.add(_RETURN, _KILL)
    program.add(_LOAD, _NUMBER_AT)
    if machine == "x86_64":
        program.add(_AT_LEAST, _X32, 0, 1)
        program.add(_RETURN, 0x50000 | errno.ENOSYS)
    for numbers in (_NUMBERS | _NUMBERS_ALONE if alone else _NUMBERS).values():
        number = numbers[column]
        if number is not None:
            program.refuse(number)
    program.refuse(_CLONE3[column], errno.ENOSYS)  # its flags lie in memory; the C library then takes clone
    program.refuse_where(_CLONE[column], 0, _NEW_NAMESPACES)
    program.refuse_where(_PRLIMIT[column], 0, 0xFFFFFFFF)  # of another process
    if alone:
        program.refuse_where(_CLONE[column], 0, _CLONE_THREAD, present=False)
        program.refuse_where(_OPENAT[column], 2, _WRITES)
        program.refuse(_OPENAT2[column], errno.ENOSYS)
        if (old_open := _OPEN[column]) is not None:
            program.refuse_where(old_open, 1, _WRITES)
    program.add(_RETURN, _ALLOW)
    return program.code


def install(*, alone: bool) -> None:
    """Puts the filter on this thread and all that it starts, for good. Needs "no new privileges". Raises OSError."""
    code = _program(alone=alone)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    control_process(PR_SET_SECCOMP, 2, ctypes.c_char_p(header))
