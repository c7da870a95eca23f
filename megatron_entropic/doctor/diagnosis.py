"""Output of `megatron-entropic doctor`: everything found on this machine, then what keeps a run from working on it."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_entropic.config import Config
from megatron_entropic.doctor.cluster import allocation, slurm_version
from megatron_entropic.doctor.machine import cores, free_bytes, temporary_folder, write_problem
from megatron_entropic.doctor.model import model_problem
from megatron_entropic.doctor.versions import PACKAGES, environment, source_fingerprint, versions
from megatron_entropic.system.devices import ask_for_cpu
from megatron_entropic.system.gpus import GPU
from megatron_entropic.system.network import interfaces
from megatron_entropic.tasks.sandbox import described

MIN_TMP_BYTES = 2**30


@dataclass(frozen=True)
class Diagnosis:
    """`found` by section and name, as text; `problems` are what must be fixed, a line each."""

    found: Mapping[str, Mapping[str, str]]
    problems: list[str]

    def __str__(self) -> str:
        width = max(len(name) for rows in self.found.values() for name in rows) + 2
        lines = []
        for section, rows in self.found.items():
            lines += [section, *(f"  {name:<{width}}{value}" for name, value in rows.items())]
        verdict = [f"problem: {problem}" for problem in self.problems] or ["no problem found"]
        return "\n".join([*lines, *verdict])


def diagnose(cfg: Config | None = None) -> Diagnosis:
    """Looks at this machine; with a run's settings also at its model and folder. Starts nothing and uses no GPU."""
    if cfg is not None and cfg.parallel.device == "cpu":
        ask_for_cpu()
    known = versions()
    problems = [f"{name} is not installed" for name in PACKAGES if known[name] is None]
    gpus, libraries, parts = _devices(cfg or Config(), problems)
    found = {
        "environment": {
            "machine": f"{socket.gethostname()}, {cores()} cores",
            "python": environment(),
            "source": source_fingerprint(),
            **{name: value or "not installed" for name, value in known.items()},
            **libraries,
            "sandbox": described(),
        },
        "GPUs": {f"GPU {number}": _gpu(gpu) for number, gpu in enumerate(gpus)} or {"GPUs": "none"},
        "interfaces": {name: ", ".join(addresses) for name, addresses in interfaces().items()},
        "SLURM": {"version": slurm_version() or "not found", "allocation": allocation() or "none: not in a job"},
        "free space": _space(cfg.run_dir if cfg else Path("runs"), problems),
        "each part will use": parts,
    }
    if cfg is not None:
        found["the run"] = _run(cfg, problems)
    return Diagnosis(found, problems)


def _devices(cfg: Config, problems: list[str]) -> tuple[list[GPU], dict[str, str], dict[str, str]]:
    """(GPUs, versions of what drives them, the path of each part); adds to `problems`. Without torch nothing is known of them."""
    try:
        from megatron_entropic.doctor.gpus import inspect_gpus, libraries
        from megatron_entropic.doctor.parts import chosen_paths, missing_parts
    except (ImportError, OSError) as error:
        problems.append(f"torch or what stands on it cannot be imported: {error}")
        return [], {}, {"parts": "unknown"}
    gpus, wrong = inspect_gpus()
    problems += [*wrong, *missing_parts(cfg)]
    return gpus, {name: value or "none in this build of torch" for name, value in libraries().items()}, chosen_paths(cfg)


def _run(cfg: Config, problems: list[str]) -> dict[str, str]:
    """What is found of a run's model and data; adds to `problems`."""
    problem = model_problem(cfg.model.hf_path)
    about = {"folder": str(cfg.run_dir), "model": f"{cfg.model.hf_path}: {'unusable' if problem else 'readable'}"}
    if problem:
        problems.append(problem)
        return about
    from megatron_entropic.doctor.run import run_problems  # imports more than other parts of this page need

    about["data"], wrong = run_problems(cfg)
    problems += wrong
    return about


def _gpu(gpu: GPU) -> str:
    return f"{gpu.name}, driver {gpu.driver}, {gpu.memory} MiB, {gpu.used} in use, {gpu.uncorrected} uncorrected memory errors"


def _space(runs: Path, problems: list[str]) -> dict[str, str]:
    """Free space by folder; adds to `problems` a folder that cannot be written or is full."""
    folders = {"TMPDIR": temporary_folder(), "runs": runs, "home": Path(os.path.expanduser("~"))}
    for name in ("TMPDIR", "runs"):
        problem = write_problem(folders[name])
        problems += [problem] if problem else []
    free = free_bytes(folders["TMPDIR"])
    if free < MIN_TMP_BYTES:
        problems.append(f"disk full: {folders['TMPDIR']} (TMPDIR) has {free / 2**30:.2f} GiB free, 1 is needed")
    return {name: f"{free_bytes(path) / 2**30:.1f} GiB at {path}" for name, path in folders.items()}
