"""Ranks given by torchrun or srun are used; everything else starts its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_entropic.launch import launcher
from megatron_entropic.launch.launcher import given_rank
from megatron_entropic.observability.metrics import read_metrics
from tests.command_line import ROOT

SRUN = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NODELIST": "node[07-08]",
}


LIGHT = """import sys
import megatron_entropic.cli
import megatron_entropic.observability.report
from megatron_entropic.config.loading import load_config
from megatron_entropic.start_checks.start import check_start
check_start(load_config("quickstart"))
print([heavy for heavy in ("torch", "megatron.core", "transformers", "vllm") if heavy in sys.modules])
"""


def test_what_starts_and_reports_imports_nothing_heavy() -> None:
    """It takes two seconds and 300 MB, in every start, to import torch."""
    done = subprocess.run([sys.executable, "-c", LIGHT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_torchruns_variables_are_taken_as_they_are() -> None:
    environ = {"RANK": "3", "WORLD_SIZE": "4", **SRUN}
    assert given_rank(environ) == 3
    assert environ["WORLD_SIZE"] == "4"


def test_ranks_of_torchrun_get_the_interface_on_the_way_to_the_first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_interface_toward", {"node07": "ib0"}.get)
    torchrun = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "node07"}
    for given, taken in (({}, "ib0"), ({"GLOO_SOCKET_IFNAME": "eth1"}, "eth1")):
        environ = {**torchrun, **given}
        assert given_rank(environ) == 9
        assert environ["GLOO_SOCKET_IFNAME"] == taken
    assert given_rank(unknown := {**torchrun, "MASTER_ADDR": "node99"}) == 9
    assert "GLOO_SOCKET_IFNAME" not in unknown, "the rendezvous says that the name is unknown"


def test_sruns_variables_are_translated() -> None:
    environ = {**SRUN, "MASTER_ADDR": "node07"}
    assert given_rank(environ) == 5
    assert (environ["WORLD_SIZE"], environ["LOCAL_RANK"]) == ("8", "1")
    assert "MASTER_PORT" not in environ, "rank 0 takes a free one"


def test_sruns_first_node_is_the_meeting_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`scontrol show hostnames` expands the node list; the program here answers as SLURM's does."""
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[07-08]" ] && printf "node07\\nnode08\\n"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    environ = dict(SRUN)
    assert given_rank(environ) == 5
    assert environ["MASTER_ADDR"] == "node07"


def test_a_batch_script_or_a_plain_shell_is_no_rank() -> None:
    assert given_rank({}) is None
    assert given_rank({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) is None


@pytest.mark.slow
@pytest.mark.distributed
def test_torchrun_starts_a_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    settings = ["rollout.engine=local", "trainer.steps=2", "batch.prompts_per_step=8", f"run.dir={run_dir}"]
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "megatron_entropic.cli",
        "train",
        "quickstart",
    ]
    done = subprocess.run([sys.executable, *command, *settings], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert len(read_metrics(run_dir / "metrics.jsonl")) == 2
    assert (run_dir / "report.html").exists()
    assert (run_dir / "hf" / "model.safetensors").exists()
