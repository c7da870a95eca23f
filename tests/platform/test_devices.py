"""Which device a rank takes, and that no GPU stays idle without a word: simulated by what torch and nvidia-smi say."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatron_entropic.config import Config, ParallelConfig
from megatron_entropic.launch import worker
from megatron_entropic.platform import accelerated, check_gpus_are_seen, device_failure, devices, select_device
from megatron_entropic.system.devices import PlacementError
from megatron_entropic.system.gpus import GPU, GPUQueryError
from tests.command_line import megatron_entropic

H100 = GPU("NVIDIA H100 80GB HBM3", "550.54", 81559, 3, 0)
CUDA = "CUDA error: invalid device ordinal\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."
TOO_OLD = "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver.\nMore."


def raising(error: Exception) -> Callable[..., object]:
    def raise_it(*args: object) -> object:
        raise error

    return raise_it


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("unlisted")
@pytest.mark.parametrize(
    ("listed", "cuda", "reason"),
    [
        ([H100] * 8, None, r"lists 8 GPUs \(NVIDIA H100 80GB HBM3, driver 550.54\), but torch .* sees none: it is a build for CPUs"),
        ([H100], "13.0", r"lists 1 GPU \(.*it is a build for CUDA 13.0, and CUDA says: The NVIDIA driver on your system is too old"),
    ],
)
def test_gpus_that_torch_does_not_see_are_an_error(
    listed: list[GPU], cuda: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "find_gpus", lambda: listed)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "init", raising(RuntimeError(TOO_OLD)))
    with pytest.raises(PlacementError, match=reason) as refused:
        check_gpus_are_seen()
    assert "parallel.device=cpu" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_list_that_names_no_gpu_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all")
    monkeypatch.setattr(devices, "find_gpus", lambda: [H100])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", raising(RuntimeError("No CUDA GPUs are available")))
    with pytest.raises(PlacementError, match=r"CUDA says: No CUDA GPUs are available \(CUDA_VISIBLE_DEVICES=all\); parallel"):
        check_gpus_are_seen()


@pytest.mark.usefixtures("unlisted")
def test_a_broken_driver_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_gpus", raising(GPUQueryError("nvidia-smi: Driver/library version mismatch")))
    with pytest.raises(PlacementError, match=r"Driver/library version mismatch: repair the driver; parallel\.device=cpu"):
        check_gpus_are_seen()


@pytest.mark.usefixtures("unlisted")
def test_a_machine_without_gpus_computes_on_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_gpus", list)
    check_gpus_are_seen()


def test_nvidia_smi_is_not_asked_where_nothing_hangs_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_gpus", raising(AssertionError("asked")))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check_gpus_are_seen()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_gpus_are_seen()
    assert accelerated()


@pytest.mark.slow
def test_a_run_says_in_one_line_that_its_gpus_are_not_seen(tmp_path: Path) -> None:
    """The CPU build of torch of this environment on a machine with a GPU, by a program that says what nvidia-smi would."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 550.54, 81559, 3, 0, Disabled'\n")
    program.chmod(0o755)
    environ = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    settings = [
        "parallel.tensor=1",
        "rollout.engine=local",
        "trainer.steps=0",
        "trainer.export_hf=false",
        f"run.dir={tmp_path / 'run'}",
    ]
    refused = megatron_entropic("train", "quickstart", *settings, environ=environ)
    assert refused.code == 1
    errors = [line for line in refused.output.splitlines() if "error: " in line]
    assert len(errors) == 1, refused.output
    assert "nvidia-smi lists 1 GPU (NVIDIA H100 80GB HBM3, driver 550.54)" in errors[0]
    doctor = megatron_entropic("doctor", environ=environ)
    assert doctor.code == 1
    assert "problem: nvidia-smi lists 1 GPU" in doctor.output
    asked_for = megatron_entropic("train", "quickstart", *settings, "parallel.device=cpu", environ=environ)  # nothing to overwrite
    assert asked_for.code == 0, asked_for.output


# The device of a rank


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The devices that were made current, on a machine with 8 GPUs."""
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


def test_a_rank_makes_its_gpu_the_current_one(eight_gpus: list[int]) -> None:
    assert [select_device(rank) for rank in (0, 7)] == [torch.device("cuda", 0), torch.device("cuda", 7)]
    assert eight_gpus == [0, 7]
    with pytest.raises(PlacementError, match="LOCAL_RANK=8 has no GPU of its own: this process sees 8"):
        select_device(8)


@pytest.mark.usefixtures("eight_gpus")
def test_a_slice_is_refused_also_where_no_variable_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "NVIDIA A100-SXM4-40GB MIG 1g.5gb")
    with pytest.raises(PlacementError, match=r"MIG 1g\.5gb is a slice of a GPU"):
        select_device(0)


@pytest.mark.usefixtures("eight_gpus")
def test_a_gpu_that_cannot_be_used_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "set_device", raising(torch.AcceleratorError(CUDA)))
    with pytest.raises(PlacementError, match=r"LOCAL_RANK=3 cannot use GPU 3: CUDA error: invalid device ordinal$"):
        select_device(3)


# Errors of a GPU


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.AcceleratorError(CUDA), "the GPU failed: CUDA error: invalid device ordinal"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee"),
            "CUDA out of memory. Tried to allocate 2.00 GiB. (",
        ),
        (RuntimeError("shapes do not fit"), None),
    ],
)
def test_errors_of_a_gpu_are_one_line(error: RuntimeError, line: str | None) -> None:
    said = device_failure(error)
    assert said is None if line is None else said is not None and said.startswith(line)
    if line is None:
        with pytest.raises(RuntimeError, match="shapes do not fit"):
            worker._after_failure(error, 1.0)
    else:
        assert worker._after_failure(error, 1.0) == worker.EXIT_FAILED


# The environment of a rank


@pytest.mark.parametrize(
    ("parallel", "given", "set_to"),
    [
        (ParallelConfig(), {}, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}),
        (ParallelConfig(tensor=2), {"PYTORCH_ALLOC_CONF": "x"}, {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "PYTORCH_ALLOC_CONF": "x"}),
        (ParallelConfig(tensor=2), {"CUDA_DEVICE_MAX_CONNECTIONS": "8", "PYTORCH_CUDA_ALLOC_CONF": "x"}, {}),
        (ParallelConfig(device="cpu", tensor=2), {}, {"CUDA_VISIBLE_DEVICES": ""}),
    ],
)
def test_a_rank_sets_cudas_variables_unless_they_are_set(
    parallel: ParallelConfig, given: dict[str, str], set_to: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    worker._prepare_devices(parallel)
    assert dict(os.environ) == {**given, **set_to}


def test_the_cpu_is_a_setting() -> None:
    assert Config().parallel.device == "auto"
