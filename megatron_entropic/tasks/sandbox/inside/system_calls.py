"""Linux's calls that Python does not offer, through the C library. Each raises OSError that names the call."""

import ctypes
import os

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
ALL_NAMESPACES = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38

_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPABILITY_VERSION = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(namespaces: int) -> None:
    """New namespaces for this process (of processes: for its children)."""
    _checked(_libc.unshare(namespaces), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    arguments = (source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags), options.encode())
    _checked(_libc.mount(*arguments), f"mount of {target}")


def unmount(target: str) -> None:
    """Takes a mount away, for whoever does not use it yet."""
    _checked(_libc.umount2(target.encode(), _MNT_DETACH), f"umount of {target}")


def bind_read_only(source: str, target: str) -> None:
    """`source` with all that is mounted in it at `target`, read-only throughout, without devices and set-user-id."""
    mount(source, target, None, MS_BIND | MS_REC)
    flags = MS_RDONLY | MS_NOSUID | MS_NODEV  # the bits of struct mount_attr have the same values
    attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
    arguments = (_AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes, ctypes.c_size_t(32))
    _checked(_libc.syscall(_MOUNT_SETATTR, *arguments), f"mount_setattr of {target}")


def change_root(folder: str) -> None:
    """Makes `folder`, a mount, the root; what was the root is gone."""
    os.chdir(folder)
    _checked(_libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    unmount(".")
    os.chdir("/")


def control_process(option: int, *arguments: object) -> None:
    """prctl(2)."""
    filled = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in (*arguments, 0, 0, 0, 0)[:4]]
    _checked(_libc.prctl(option, *filled), f"prctl {option}")


def drop_capabilities() -> None:
    """Leaves this process, and what it may start, without any capability and without a way to gain one."""
    for capability in range(64):
        if _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            break  # beyond the last one that this kernel has, or there is no right to drop any
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    _checked(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    control_process(PR_SET_NO_NEW_PRIVS, 1)
