"""How the benchmarks measure: time, peak memory, and what the device itself can do.

Peak memory. On a GPU: torch.cuda.max_memory_allocated. On a CPU: the highest resident memory of a fresh process between two
points (the kernel's VmHWM, reset through /proc/self/clear_refs), which sees every allocator, torch's and the math library's.
"""

import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

Timed = Callable[[], None]


class Device:
    """The device under test and its clock."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_gpu = name.startswith("cuda")

    def seconds(self, step: Timed) -> float:
        """One run of `step`: by events on a GPU, else by the wall clock."""
        if not self.is_gpu:
            start = time.perf_counter()
            step()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1000

    def peak_bytes(self, step: Timed) -> int:
        """Most memory in use at once during `step`, beyond what is in use before it."""
        if self.is_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - before
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_bytes("VmRSS")
        step()
        return _status_bytes("VmHWM") - before

    def describe(self) -> str:
        if self.is_gpu:
            return torch.cuda.get_device_name()
        return f"{torch.get_num_threads()}-core {platform.machine().replace('_', '-')} CPU, no GPU"


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: peak memory can be measured on Linux only")


def median_in_turn(steps: dict[str, Timed], device: Device, repeats: int) -> dict[str, float]:
    """Median of `repeats` runs of each step, the steps taking turns, so that a busy moment of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            seconds[name].append(device.seconds(step))
    return {name: median(taken) for name, taken in seconds.items()}


def copy_bandwidth(device: Device, repeats: int) -> float:
    """Bytes per second, read plus written, of a copy of 512 MiB."""
    source = torch.ones(2**27, device=device.name)
    target = torch.empty_like(source).copy_(source)
    seconds = median_in_turn({"copy": lambda: _discard(target.copy_(source))}, device, max(repeats, 5))["copy"]
    return 2 * source.numel() * source.element_size() / seconds


def _discard(_: object) -> None:
    """Makes a step, which returns nothing, of an expression."""
