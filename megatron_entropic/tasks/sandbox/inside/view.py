"""What the sandbox sees of the machine: Python and the libraries, read-only, and one folder in memory of bounded size."""

import os

from .system_calls import (
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    bind_read_only,
    change_root,
    mount,
    unmount,
)

WORK = "/box"
"""The working directory; also /dev/shm, and /tmp unless libraries lie there."""
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_MOUNTED_OVER = ("/tmp", "/var/tmp", "/mnt", "/run")
_ROOT_OPTIONS = "size=1m,nr_inodes=1k,mode=755"
_MOST_FILES = 4096


def enter(shown: list[str]) -> None:
    """Leaves the file system for a view of the libraries and the folders `shown`. In a mount namespace of its own. Raises OSError."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    # Opened while their old places can be reached: the new root hides one of them, and another user could not get there.
    opened = {path: os.open(path, os.O_PATH) for path in _outermost([*_LIBRARIES, *shown]) if not os.path.islink(path)}
    devices = {path: os.open(path, os.O_PATH) for path in _DEVICES if os.path.exists(path)}
    links = {path: os.readlink(path) for path in _LIBRARIES if os.path.islink(path)}
    root = next(path for path in _MOUNTED_OVER if os.path.isdir(path))
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, _ROOT_OPTIONS)
    for path, descriptor in opened.items():
        os.makedirs(root + path)
        bind_read_only(f"/proc/self/fd/{descriptor}", root + path)
        os.close(descriptor)
    for path, target in links.items():
        os.symlink(target, root + path)
    _make_devices(root, devices)
    os.mkdir(root + WORK)
    if not os.path.isdir(f"{root}/tmp"):  # some of `shown` may lie there
        os.symlink(WORK, f"{root}/tmp")
    mount("none", root, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    change_root(root)


def _outermost(paths: list[str]) -> list[str]:
    """Those folders that are there and lie in none of the others."""
    there = {os.path.normpath(path) for path in paths if os.path.isdir(path)}
    return sorted(path for path in there if not any(path != other and path.startswith(f"{other}/") for other in there))


def _make_devices(root: str, devices: dict[str, int]) -> None:
    os.mkdir(f"{root}/dev")
    for path, descriptor in devices.items():
        with open(root + path, "w"):
            mount(f"/proc/self/fd/{descriptor}", root + path, None, MS_BIND)
        os.close(descriptor)
    os.symlink(WORK, f"{root}/dev/shm")


def fresh_work(disk_bytes: int, owner: int) -> None:
    """An empty WORK of `disk_bytes`, which is `owner`'s, in place of what an earlier case left, and goes there. Raises OSError."""
    os.chdir("/")
    if os.path.ismount(WORK):
        unmount(WORK)
    options = f"size={disk_bytes},nr_inodes={_MOST_FILES},mode=700,uid={owner},gid={owner}"
    mount("tmpfs", WORK, "tmpfs", MS_NOSUID | MS_NODEV, options)
    os.chdir(WORK)
