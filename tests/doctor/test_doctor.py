"""doctor's output for this machine, for simulated GPUs, and for injected faults."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_entropic import platform
from megatron_entropic.config import Config, ModelConfig, RolloutConfig
from megatron_entropic.config.loading import load_config
from megatron_entropic.doctor import gpus, parts
from megatron_entropic.doctor.machine import existing, free_bytes, write_problem
from megatron_entropic.doctor.model import model_fingerprint, model_problem
from megatron_entropic.doctor.node import node_facts
from megatron_entropic.doctor.parts import chosen_paths, missing_parts
from megatron_entropic.doctor.reach import Answering, reach_all
from megatron_entropic.doctor.run import run_problems
from megatron_entropic.system.gpus import GPU, GPUQueryError, find_gpus, parse_gpus
from megatron_entropic.system.network import address_of, address_toward, interface_of, interfaces
from tests.command_line import ROOT, megatron_entropic
from tests.tiny_models import TINY_DECOMPOSE

H100 = GPU("NVIDIA H100 80GB HBM3", "550.54", 81559, 3, 0)


def fake_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, says: str, code: int) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The command


def test_doctor_finds_this_machine_fit_for_the_quickstart() -> None:
    outcome = megatron_entropic("doctor", "quickstart")
    assert outcome.code == 0, outcome.output
    for word in ("torch ", "megatron-core ", "interfaces", "collectives", "vLLM 0.32.0 (CPU build)", "sandbox ", "no problem found"):
        assert word in outcome.output, word


def test_doctor_names_what_is_wrong_and_fails(tmp_path: Path) -> None:
    """A model that is not there, and a TMPDIR that cannot be written."""
    outcome = megatron_entropic(
        "doctor", "quickstart", f"model.hf_path={tmp_path / 'none'}", environ={"TMPDIR": "/proc", "HOME": str(tmp_path)}
    )
    assert outcome.code == 1
    problems = [line for line in outcome.output.splitlines() if line.startswith("problem: ")]
    assert any("cannot write in /proc" in problem for problem in problems), problems
    assert any(str(tmp_path / "none") in problem for problem in problems), problems


def test_a_feature_that_this_machine_lacks_is_a_problem_of_the_run() -> None:
    _, problems = run_problems(load_config("quickstart", ["model.fp8=mxfp8"]))
    assert [problem for problem in problems if problem.startswith("model.fp8=mxfp8")], problems
    assert not run_problems(load_config("quickstart"))[1]


# GPUs


def test_nvidia_smis_table_is_read() -> None:
    text = "NVIDIA H100 80GB HBM3, 550.54, 81559, 3, 0, Disabled\nNVIDIA A10, 550.54, 23028, 9000, [N/A], [N/A]\n"
    assert parse_gpus(text) == [H100, GPU("NVIDIA A10", "550.54", 23028, 9000, 0)]
    (sliced,) = parse_gpus("NVIDIA A100-SXM4-40GB, 550.54, 40536, 3, 0, Enabled\n")
    assert sliced.sliced


def test_a_driver_that_does_not_answer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi's own words and exit code when kernel module and library differ."""
    fake_nvidia_smi(tmp_path, monkeypatch, "Failed to initialize NVML: Driver/library version mismatch", 18)
    with pytest.raises(GPUQueryError, match="version mismatch"):
        find_gpus()


def test_lines_beside_nvidia_smis_table_are_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A corrupted infoROM is a line after the table, and exit code 14; the GPU works."""
    row, warning = "NVIDIA H100 80GB HBM3, 550.54, 81559, 3, 0, Disabled", "WARNING: infoROM is corrupted at gpu 0000:1B:00.0"
    fake_nvidia_smi(tmp_path, monkeypatch, f"{row}\n{warning}", 14)
    assert find_gpus() == [H100]
    fake_nvidia_smi(tmp_path, monkeypatch, f"{row}\nUnable to determine the device handle for GPU1", 15)
    with pytest.raises(GPUQueryError, match="nvidia-smi: Unable to determine"):
        find_gpus()


@pytest.mark.parametrize(
    ("says", "named"), [("NVIDIA-SMI is not for you", "is not for you"), ("", "no words, exit code 0"), ("\xff", "\ufffd")]
)
def test_an_answer_that_is_no_table_is_an_error(says: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, "", 0)
    (tmp_path / "nvidia-smi").write_bytes(f"#!/bin/sh\necho '{says}'\n".encode("latin-1"))
    with pytest.raises(GPUQueryError, match=f"nvidia-smi: .*{named}"):
        find_gpus()


def test_an_nvidia_smi_that_hangs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, "'; exec sleep 60; '", 0)
    with pytest.raises(GPUQueryError, match=r"^nvidia-smi: no answer within 0\.5 s$"):
        find_gpus(timeout_s=0.5)


def test_a_machine_without_devices_has_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, "No devices were found", 6)
    assert find_gpus() == []


def test_each_part_says_which_path_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the code that decides decides, here and where torch sees a GPU."""
    here, alone = chosen_paths(Config()), chosen_paths(Config(rollout=RolloutConfig(engine="local")))
    assert (here["device"], here["collectives"], here["token statistics"]) == ("the CPU", "gloo (no GPU)", "torch")
    assert here["weight transfer"] == "gloo, trainer to servers"
    assert here["optimizer"] == "torch's AdamW (neither Transformer Engine nor Apex can be imported)"
    assert (alone["rollouts"], alone["weight transfer"]) == ("transformers, in the trainer's process", "a copy within the process")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    there = chosen_paths(Config())
    assert (there["device"], there["collectives"], there["token statistics"]) == ("GPUs", "NCCL", "Triton kernels")
    assert there["weight transfer"] == "NCCL, trainer to servers"
    assert "Transformer Engine is not installed" in there["layers"]
    assert "does not fit this machine" in there["rollouts"]
    assert here.keys() == there.keys() == alone.keys()
    shared = chosen_paths(Config(rollout=RolloutConfig(share_gpu=True)))
    assert shared["weight transfer"] == "gloo, trainer to servers sharing its GPUs"
    assert chosen_paths(Config(model=ModelConfig(layer_spec="local")))["layers"] == "Megatron-Core's local layers (asked for)"


def test_the_optimizer_is_the_one_that_megatron_core_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core import optimizer

    for package, named in (
        ("transformer_engine.pytorch.optimizers", "Transformer Engine's fused"),
        ("apex.optimizers", "Apex's fused"),
    ):
        monkeypatch.setattr(optimizer, "Adam", type("FusedAdam", (), {"__module__": package}))
        assert chosen_paths(Config())["optimizer"] == f"{named} Adam"


def test_packages_that_a_chosen_path_needs_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_parts(Config()) == []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert missing_parts(Config()) == ["rollout.engine=vllm: vLLM 0.32.0 (CPU build, which does not fit this machine)"]
    monkeypatch.setattr(parts, "importable", lambda module: False)
    assert [problem.partition(",")[0] for problem in missing_parts(Config(model=ModelConfig(layer_spec="transformer_engine")))] == [
        "rollout.engine=vllm",
        "the token statistics run in Triton kernels on a GPU",
        "model.layer_spec=transformer_engine",
    ]


def test_gpus_that_torch_does_not_see_are_a_problem_of_doctor_and_of_preflight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(platform.devices, "find_gpus", lambda: [H100])
    monkeypatch.setattr(gpus, "find_gpus", lambda: [H100])
    found, problems = gpus.inspect_gpus()
    assert found == [H100]
    assert len(problems) == 1
    assert "nvidia-smi lists 1 GPU" in problems[0]
    assert problems == node_facts(TINY_DECOMPOSE, tmp_path, [])["problems"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.inspect_gpus() == ([H100], [])


def test_slices_and_what_else_makes_a_gpu_unfit_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "unseen_gpus", lambda: None)
    monkeypatch.setattr(gpus, "find_gpus", lambda: [H100, dataclasses.replace(H100, sliced=True, uncorrected=2, used=9000)])
    found, problems = gpus.inspect_gpus()
    assert [problem.partition(":")[0] for problem in problems] == [
        "GPU 1 (NVIDIA H100 80GB HBM3) shows itself as a slice of a GPU (MIG); NCCL does not communicate between slices, and a process "
        "sees only one",
        "GPU 1 has 2 uncorrected memory errors",
    ]
    assert gpus.busy_gpus(found) == ["GPU 1 is in use already: 9000 MiB are taken"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (gpus.inspect_gpus()[1], gpus.busy_gpus(found)) == ([], []), "the CPU is asked for"


def test_cudas_libraries_are_told_where_torch_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpus.libraries() == {"CUDA": None, "cuDNN": None, "NCCL": None}
    for name, value in (("torch.version.cuda", "13.0"), ("torch.backends.cudnn.version", lambda: 91002)):
        monkeypatch.setattr(name, value)
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: True)
    monkeypatch.setattr("torch.cuda.nccl.version", lambda: (2, 27, 7))
    assert gpus.libraries() == {"CUDA": "13.0", "cuDNN": "9.10.2", "NCCL": "2.27.7"}


# Disk and model


def test_free_space_is_that_of_where_the_folder_would_be(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet"
    assert existing(path) == tmp_path
    assert free_bytes(path) == free_bytes(tmp_path) > 0
    assert write_problem(path) is None
    assert list(tmp_path.iterdir()) == []
    assert write_problem(Path("/proc/x")) is not None


def test_a_models_fingerprint_follows_its_files(tmp_path: Path) -> None:
    assert model_problem(TINY_DECOMPOSE) is None
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_bytes((TINY_DECOMPOSE / name).read_bytes())
    before = model_fingerprint(tmp_path)
    assert model_fingerprint(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"short")
    assert model_fingerprint(tmp_path) != before
    problem = model_problem(tmp_path)
    assert problem is not None
    assert "model.safetensors" in problem
    assert "\n" not in problem


# Network


def test_addresses_lead_to_their_interfaces() -> None:
    assert address_toward("127.0.0.1") == "127.0.0.1"
    loopback = interface_of("127.0.0.1")
    assert loopback is not None
    assert address_of(loopback) == "127.0.0.1"
    assert interface_of("192.0.2.77") is None
    with pytest.raises(ValueError, match=rf"no interface 'ib9'.*{loopback}"):
        address_of("ib9")
    with pytest.raises(OSError, match=r"no\.such\.host\.invalid cannot be reached from"):
        address_toward("no.such.host.invalid")
    assert loopback in interfaces()


def test_a_node_that_answers_is_reached_and_its_clock_agrees() -> None:
    port = free_port()
    with Answering("n2", port):
        reached, clock = reach_all({"n1": "127.0.0.1", "n2": "127.0.0.1"}, "n1", port, 5.0)
    assert reached == {"n2": None}
    assert clock["n1"] == 0.0
    assert abs(clock["n2"]) < 1.0


def test_an_address_of_another_node_is_noticed() -> None:
    port = free_port()
    with Answering("n3", port):
        reached, _ = reach_all({"n1": "127.0.0.1", "n2": "127.0.0.1"}, "n1", port, 5.0)
    assert reached == {"n2": f"port {port} was answered by n3: its address leads to another machine"}


def test_a_node_that_does_not_answer_is_noticed() -> None:
    reached, clock = reach_all({"n1": "127.0.0.1", "n2": "127.0.0.1"}, "n1", free_port(), 0.5)
    assert "refused" in (reached["n2"] or "")
    assert "n2" not in clock


# All-reduce


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("present", [2, 1])
def test_an_all_reduce_succeeds_or_says_who_waited(present: int) -> None:
    """With one rank missing the other reports that it did not meet it, instead of hanging."""
    environ = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "megatron_entropic.doctor.all_reduce", "--timeout", "60" if present == 2 else "4"]
    ranks = [
        subprocess.Popen(
            command, cwd=ROOT, env={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(present)
    ]
    lines = [rank.communicate(timeout=120)[0] for rank in ranks]
    reports = [json.loads(line[line.index("PREFLIGHT ") + len("PREFLIGHT ") :]) for line in lines]
    if present == 2:
        assert all(report["joined"] and "error" not in report and report["gb_per_s"] > 0 for report in reports), reports
    else:
        assert not reports[0]["joined"]
        assert reports[0]["error"]
