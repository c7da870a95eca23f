"""For all tests: no example of a property has a deadline, because a busy machine would fail it; random faults repeat by their seed."""

import atexit
import gc
import os
import random

import pytest
from hypothesis import settings

from megatron_entropic.platform import import_megatron

settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores, and so do the processes that they start
SEED = os.environ.setdefault("MEGATRON_ENTROPIC_SEED", str(random.randrange(10**6)))  # workers inherit it


def pytest_report_header() -> str:
    """Shown by every run, also by those that pass."""
    return f"fault campaign: MEGATRON_ENTROPIC_SEED={SEED} repeats its draws"


def pytest_sessionstart() -> None:
    """Collecting imports everything: the garbage collector rests meanwhile (system/many_imports.py)."""
    gc.disable()
    import_megatron()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts every test in a group for pytest-xdist's `--dist loadgroup`: a group's tests run in one worker, one after the other.

    In a worker, groups also start with the longest, so that the short ones even out the end. Without workers nothing moves.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(_group(item)))
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: _place(str(item.get_closest_marker("xdist_group").args[0]), item.path in slow))  # type: ignore[union-attr]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Ends what pytest_sessionstart began, and refuses to continue where pytest-xdist does not group.

    Servers and clusters would run side by side then, on the same ports.
    """
    gc.freeze()
    atexit.register(gc.unfreeze)
    gc.enable()
    grouped = all("@" in item.nodeid for item in session.items)
    if "PYTEST_XDIST_WORKER" in os.environ and session.config.getoption("loadgroup") and not grouped:
        raise pytest.UsageError(f"pytest-xdist does not group tests with pytest {pytest.__version__}; see requirements/cpu.lock")


def _group(item: pytest.Item) -> str:
    """`vllm` for what starts servers, which take every core; `slurm` for what shares the cluster; else the file, for its fixtures."""
    if "slurm" in item.path.parent.parts:
        return "slurm"
    return "vllm" if item.get_closest_marker("vllm") else item.nodeid.partition("::")[0]


def _place(group: str, slow: bool) -> int:
    if group == "vllm":
        return 0
    if group == "slurm":  # not beside the servers of `vllm` from the start, and not so late that one worker waits for it
        return 2
    return 1 if slow else 3
