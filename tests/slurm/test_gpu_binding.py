"""The GPUs that SLURM shows to the tasks of a step, as SLURM itself does it: each node has four device files for GPUs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_entropic.system.devices import PlacementError, rank_device, visible_devices
from tests.command_line import ROOT
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import Job

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

OF_THE_LAUNCHER = """
import os, sys
from slurm.allocation import read_allocation
from slurm.containers import Container
from slurm.steps import Step, StepRequest

group = read_allocation(os.environ).groups[0]
print("COUNTED", group.gpus_per_node, flush=True)
show = ["sh", "-c", 'echo "SEES $CUDA_VISIBLE_DEVICES"']
step = Step(StepRequest([group], 4, show), Container("none", "", (), gpus=True), lambda task, line: print(line, flush=True))
sys.exit(step.wait())
"""
OF_A_USER = """
import json, os
names = [name for name in os.environ if name.startswith(("SLURM_", "CUDA_"))]
with open(f"{os.path.dirname(__file__)}/environ-{os.environ['SLURM_PROCID']}.json", "w") as file:  # srun mixes long lines of tasks
    json.dump({name: os.environ[name] for name in names}, file)
"""


def output_of(cluster: Cluster, folder: Path, script: str, *flags: str) -> str:
    """What a job of that batch script says on one node."""
    path = folder / "job.sh"
    path.write_text(f"#!/bin/bash\ncd {ROOT}\n{script}\n")
    command = ["sbatch", "--parsable", "--nodes=1", "--exclusive", f"--output={folder}/job-%j.out", *flags, str(path)]
    done = subprocess.run(command, env=cluster.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    finished = Job(cluster, done.stdout.strip(), folder).wait(60)
    assert finished.state == "COMPLETED", finished.output
    return finished.output


@pytest.mark.parametrize(
    "flags",
    [
        ["--gpus-per-node=4"],
        ["--gres=gpu:4"],
        ["--ntasks-per-node=4", "--gpus-per-task=1"],
        ["--ntasks-per-node=4", "--gpus-per-node=4", "--gpu-bind=single:1"],
        ["--gpus=4", "--ntasks-per-gpu=1"],
    ],
)
def test_every_task_of_our_steps_sees_all_gpus(flags: list[str], idle: Cluster, tmp_path: Path) -> None:
    program = tmp_path / "steps.py"
    program.write_text(OF_THE_LAUNCHER)
    said = output_of(idle, tmp_path, f"PYTHONPATH={ROOT} {sys.executable} {program}", *flags).splitlines()
    assert [line for line in said if line.startswith(("COUNTED", "SEES"))] == ["COUNTED 4", *["SEES 0,1,2,3"] * 4], said


@pytest.mark.parametrize("flags", [["--gpus-per-task=1"], ["--gpu-bind=single:1"], ["--gpu-bind=none"], []])
def test_ranks_of_a_users_srun_get_different_gpus(flags: list[str], idle: Cluster, tmp_path: Path) -> None:
    program = tmp_path / "environ.py"
    program.write_text(OF_A_USER)
    script = f"srun --ntasks=4 {' '.join(flags)} {sys.executable} {program}"
    said = output_of(idle, tmp_path, script, "--ntasks=4", "--gpus-per-node=4")
    environs = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("environ-*.json"))]
    assert len(environs) == 4, said
    taken = set()
    for environ in environs:
        seen = visible_devices(environ.get("CUDA_VISIBLE_DEVICES"), 4)  # under "none" SLURM sets none
        taken.add(seen[rank_device(int(environ["SLURM_LOCALID"]), len(seen), environ)])
    assert taken == set("0123"), [environ.get("CUDA_VISIBLE_DEVICES") for environ in environs]


def test_tasks_that_have_to_share_a_gpu_are_refused(idle: Cluster, tmp_path: Path) -> None:
    program = tmp_path / "environ.py"
    program.write_text(OF_A_USER)
    output_of(idle, tmp_path, f"srun --ntasks=2 {sys.executable} {program}", "--ntasks=2", "--gpus-per-node=1")
    environs = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("environ-*.json"))]
    second = next(environ for environ in environs if environ["SLURM_LOCALID"] == "1")
    with pytest.raises(PlacementError, match="LOCAL_RANK=1 has no GPU of its own: this process sees 1"):
        rank_device(1, len(visible_devices(second["CUDA_VISIBLE_DEVICES"], 4)), second)
