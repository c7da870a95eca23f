"""Part `kernels`: token statistics and the output layer against float64, and their speed beside what the device can do."""

from collections import Counter
from dataclasses import dataclass

import torch

from megatron_entropic.doctor.smoke.findings import Findings, Value
from megatron_entropic.doctor.speed.cases import KernelCase, cases, four_gemms, is_linear
from megatron_entropic.doctor.speed.float64 import float64_errors
from megatron_entropic.doctor.speed.measure import Device, Timed, copy_bandwidth, median_in_turn
from megatron_entropic.doctor.speed.problem import KernelProblem
from megatron_entropic.doctor.speed.timing import steps_of, warm_up

_SLOW = "released AEnt (CPU topk)"
"""A case that moves all logits to the CPU and sorts them there: benchmarks/token_statistics.py has it."""
_FLOORS = {"value_error": 5e-6, "gradient_error": 2e-5}
"""Errors that are rounding in any case; beyond, ours may be twice plain torch's on the same inputs."""


@dataclass(frozen=True)
class ProblemSize:
    """Tokens that are timed and that are compared with float64, and the output layer's shape."""

    tokens: int
    checked: int
    vocab: int
    hidden: int
    repeats: int
    timed_dtype: torch.dtype

    def problem(self, dtype: torch.dtype, device: str, *, linear: bool, tokens: int) -> KernelProblem:
        return KernelProblem.make(tokens, self.vocab, self.hidden, dtype, device, 0.4, linear)


ON_A_GPU = ProblemSize(tokens=2048, checked=64, vocab=151_936, hidden=1536, repeats=5, timed_dtype=torch.bfloat16)
ON_A_CPU = ProblemSize(tokens=64, checked=8, vocab=4096, hidden=256, repeats=2, timed_dtype=torch.float32)


def run(findings: Findings) -> None:
    """Errors in float32 and bfloat16 first, then times, in turns, in one type."""
    on_gpu = torch.cuda.is_available()
    size, device = (ON_A_GPU, "cuda") if on_gpu else (ON_A_CPU, "cpu")
    if not on_gpu:
        findings.cannot("the Triton kernels", "there is no GPU: what is measured is their counterpart in torch")
    torch.set_float32_matmul_precision("highest")
    for dtype in (torch.float32, torch.bfloat16):
        findings.step(f"errors against float64, {_name(dtype)}")
        _check_errors(findings, size, device, dtype)
    findings.step("speed")
    _measure_speed(findings, size, device)
    absent = Counter((case.package, case.missing) for case in cases(device) if case.package and case.missing)
    for (package, why), count in absent.items():
        findings.cannot(f"{package}, {count} case{'s' * (count != 1)}", why)


def _check_errors(findings: Findings, size: ProblemSize, device: str, dtype: torch.dtype) -> None:
    """A row a case; ours may err as plain torch does, twice over."""
    plain: dict[str, dict[str, float]] = {}
    tried = [case for case in cases(device) if not case.missing]
    for case in sorted(tried, key=lambda case: case.is_ours):  # plain torch first: it is the measure
        problem = size.problem(dtype, device, linear=is_linear(case), tokens=size.checked)
        try:
            errors = float64_errors(case, problem)
        except Exception as error:
            if not case.package:
                raise
            findings.cannot(f"{case.group}, {case.name}, {_name(dtype)}", f"{type(error).__name__}: {str(error).splitlines()[:1]}")
            continue
        findings.found(f"{case.group}, {case.name}, {_name(dtype)}", **errors)
        if not case.package and not case.is_ours:
            plain[case.group] = errors
        if case.is_ours:
            for kind, value in errors.items():
                limit = max(_FLOORS[kind], 2 * plain.get(case.group, _FLOORS)[kind])
                findings.at_most(f"{case.group}, {case.name}, {_name(dtype)}: {kind.replace('_', ' ')} against float64", value, limit)


def _measure_speed(findings: Findings, size: ProblemSize, device_name: str) -> None:
    device, dtype = Device(device_name), size.timed_dtype
    bandwidth = copy_bandwidth(device, size.repeats)
    findings.found("speed, a copy", GB_per_s=bandwidth / 1e9)
    known = cases(device_name)
    for group in dict.fromkeys(case.group for case in known):
        members = [case for case in known if case.group == group and case.name != _SLOW]
        _measure_group(findings, size, device, members, f"speed, {group}, {_name(dtype)}", bandwidth)


def _measure_group(
    findings: Findings, size: ProblemSize, device: Device, members: list[KernelCase], title: str, bandwidth: float
) -> None:
    """A row a case, timed in turns: GB/s of the logits that any implementation moves, or TFLOP/s of the output layer's four GEMMs."""
    linear = is_linear(members[0])
    problem = size.problem(size.timed_dtype, device.name, linear=linear, tokens=size.tokens)
    steps: dict[str, Timed] = {}
    for case in members:
        if case.missing:
            continue
        if why := warm_up(case, problem):
            findings.cannot(f"{title}, {case.name}", why)
        else:
            steps |= steps_of(case, problem)
    if linear:
        steps |= {f"the four GEMMs alone/{name}": step for name, step in four_gemms(problem).items()}
    median = median_in_turn(steps, device, size.repeats)
    logits_bytes = size.tokens * size.vocab * size.timed_dtype.itemsize
    for name in dict.fromkeys(step.rpartition("/")[0] for step in median):
        forward, backward = median[f"{name}/forward"], median[f"{name}/backward"]
        numbers: dict[str, Value] = {"forward_ms": 1e3 * forward, "backward_ms": 1e3 * backward}
        if linear:
            numbers["TFLOP_per_s"] = 8 * size.tokens * size.vocab * size.hidden / (forward + backward) / 1e12
        else:
            moved = {"forward": logits_bytes / forward, "backward": 2 * logits_bytes / backward}
            numbers |= {f"{way}_GB_per_s": rate / 1e9 for way, rate in moved.items()}
            numbers["of_copy"] = f"{moved['forward'] / bandwidth:.0%} / {moved['backward'] / bandwidth:.0%}"
        findings.found(f"{title}, {name}", **numbers)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
