"""doctor's output for this machine, for simulated GPUs, and for injected faults."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_entropic.doctor.machine import GPU, GPUQueryError, existing, find_gpus, free_bytes, parse_gpus, write_problem
from megatron_entropic.doctor.model import model_fingerprint, model_problem
from megatron_entropic.doctor.parts import chosen_paths
from megatron_entropic.doctor.reach import Answering, reach_all
from megatron_entropic.system.network import address_of, address_toward, interface_of, interfaces
from tests.command_line import ROOT, megatron_entropic
from tests.tiny_models import TINY_DECOMPOSE

H100 = GPU("NVIDIA H100 80GB HBM3", "550.54", 81559, 3, 0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The command


def test_doctor_finds_this_machine_fit_for_the_quickstart() -> None:
    outcome = megatron_entropic("doctor", "quickstart")
    assert outcome.code == 0, outcome.output
    for word in ("torch ", "megatron-core ", "interfaces", "collectives", "vLLM 0.32.0 (CPU build)", "no problem found"):
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


# GPUs


def test_nvidia_smis_table_is_read() -> None:
    text = "NVIDIA H100 80GB HBM3, 550.54, 81559, 3, 0\nNVIDIA A10, 550.54, 23028, 9000, [N/A]\n"
    assert parse_gpus(text) == [H100, GPU("NVIDIA A10", "550.54", 23028, 9000, 0)]


def test_a_driver_that_does_not_answer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi's own words and exit code when kernel module and library differ."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(GPUQueryError, match="version mismatch"):
        find_gpus()


def test_each_part_says_which_path_it_takes() -> None:
    here, there = chosen_paths([]), chosen_paths([H100])
    assert here["collectives"] == "gloo (no GPU)"
    assert there["collectives"] == "NCCL"
    assert "Transformer Engine is not installed" in there["layers"]
    assert "does not fit this machine" in there["rollouts"]
    assert here.keys() == there.keys()
    alone = chosen_paths([], "local")
    assert (alone["rollouts"], alone["weight transfer"]) == ("transformers, in the trainer's process", "a copy within the process")
    assert alone.keys() == here.keys()


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
