"""Jobs that end early, sweeps, conversions, submission."""

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from megatron_entropic.observability.metrics import read_metrics
from tests.command_line import ROOT
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import Job, job, lines_of

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
SERVED = ("quickstart", "parallel.tensor=1", "--ranks-per-node=1", "rollout.servers=1", "--preflight=off", "batch.prompts_per_step=8")


@pytest.mark.vllm
def test_a_killed_rank_takes_the_servers_along(idle: Cluster, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    submitted = job(idle, tmp_path, "train.sbatch", "--nodes=2", *SERVED, f"run.dir={run_dir}")

    def serving() -> bool:
        try:
            return any("vllm.server_main" in " ".join(process.cmdline()) for process in submitted.processes())
        except psutil.NoSuchProcess:  # it ended between the two questions
            return False

    submitted.wait_until(serving, 60)
    submitted.kill("megatron_entropic.cli", "train")
    submitted.wait(90)
    assert submitted.state == "FAILED", submitted.output
    assert submitted.restarts == 0
    idle.wait(lambda: not submitted.processes(), 30, f"processes are left: {submitted.processes()}")


@pytest.mark.vllm
def test_a_dead_server_is_named(idle: Cluster, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    submitted = job(idle, tmp_path, "train.sbatch", "--nodes=2", *SERVED, f"run.dir={run_dir}")
    submitted.wait_until(lambda: any((run_dir / "fleet").glob("*/server-0.json")), 60)
    submitted.kill("megatron_entropic.rollout.vllm.server_main")
    submitted.wait(120)
    assert submitted.state == "FAILED", submitted.output
    assert "[fleet n2] megatron-entropic: error: rollout server 0 (http://10." in submitted.output
    told = [line for line in submitted.output.splitlines() if line.startswith("[rank 0 n1]") and "error: " in line]
    assert len(told) == 1
    assert "rollout server 0 (http://10." in told[0]
    assert "on n2, exit code -9) died" in told[0]
    assert not submitted.processes()


def test_a_cancelled_job_stays_cancelled(idle: Cluster, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    settings = ["quickstart", "parallel.tensor=1", "rollout.engine=local", "batch.prompts_per_step=8", "--preflight=off"]
    submitted = job(idle, tmp_path, "train.sbatch", "--nodes=1", *settings, "trainer.steps=1000", f"run.dir={run_dir}")
    submitted.wait_until(lambda: lines_of(run_dir / "metrics.jsonl") >= 1, 90)
    idle.slurm("scancel", submitted.job_id)
    submitted.wait(60)
    assert submitted.state == "CANCELLED"
    idle.wait(idle.idle, 30, "the cancelled job's nodes did not become free")
    assert submitted.state == "CANCELLED"
    assert not submitted.processes()


def test_a_sweep_is_one_run_a_line(idle: Cluster, tmp_path: Path) -> None:
    (tmp_path / "sweep.txt").write_text("# two targets\ncontrol.target_entropy=0.7\ncontrol.target_entropy=0.9 run.name=warm\n")
    settings = ["quickstart", "parallel.tensor=1", "rollout.engine=local", "trainer.steps=1", "batch.prompts_per_step=8"]
    submitted = job(idle, tmp_path, "train.sbatch", "--nodes=1", "--array=0-1", *settings, "--sweep=sweep.txt", "--preflight=off")
    idle.wait(lambda: len(list(tmp_path.glob("runs/*/report.html"))) == 2, 120, f"the runs did not end:\n{submitted.output}")
    targets = {folder.name: read_metrics(folder / "metrics.jsonl")[0]["control/target_entropy"] for folder in tmp_path.glob("runs/*")}
    assert targets == {"quickstart-0": 0.7, "warm": 0.9}


def test_a_trained_run_is_converted_by_a_job(idle: Cluster, replayable: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    finished = job(idle, tmp_path, "convert.sbatch", "--ntasks=1", "export", str(replayable), str(out)).wait(120)
    assert finished.state == "COMPLETED", finished.output
    exported, trained = load_file(out / "model.safetensors"), load_file(replayable / "hf" / "model.safetensors")
    assert exported.keys() == trained.keys()


def test_bad_settings_end_the_job_with_one_line(idle: Cluster, tmp_path: Path) -> None:
    submitted = job(idle, tmp_path, "train.sbatch", "--nodes=2", "quickstart", "trainer.step=3").wait(60)
    assert submitted.state == "FAILED"
    assert [line for line in submitted.output.splitlines() if "error: " in line] == [
        "slurm.launch: error: unknown setting 'trainer.step'; did you mean 'trainer.steps'?"
    ]


def test_a_run_saves_before_its_time_limit_and_goes_on(idle: Cluster, tmp_path: Path) -> None:
    """SLURM's own signal; no checkpoint was due. Nothing is done twice and nothing is left out."""
    run_dir = tmp_path / "run"
    settings = ["quickstart", "parallel.tensor=1", "rollout.engine=local", "batch.prompts_per_step=8", "trainer.steps=100000"]
    settings += ["checkpoint.every=1000000", "--preflight=off", f"run.dir={run_dir}"]
    submitted = job(idle, tmp_path, "train.sbatch", "--nodes=1", "--time=60", "--signal=B:USR1@300", *settings)
    submitted.wait_until(lambda: lines_of(run_dir / "metrics.jsonl") >= 2, 120)
    idle.slurm("scontrol", "update", f"jobid={submitted.job_id}", "timelimit=5")  # less than 300 s are left: the signal is due
    submitted.wait_until(lambda: "saved; requeueing the job" in submitted.output, 120)
    idle.slurm("scontrol", "update", f"jobid={submitted.job_id}", "timelimit=60")
    submitted.wait_until(lambda: "resumed from" in submitted.output, 120)
    saved = int(re.findall(r"resumed from \S+ after (\d+) steps", submitted.output)[0])
    submitted.wait_until(lambda: lines_of(run_dir / "metrics.jsonl") >= saved + 2, 60)
    assert submitted.restarts == 1
    idle.slurm("scancel", submitted.job_id)
    submitted.wait(60)
    assert "got SIGUSR1: passed on to the ranks" in submitted.output
    steps = [line["step"] for line in read_metrics(run_dir / "metrics.jsonl")]
    assert steps == list(range(len(steps)))
    assert saved > 0
    assert [submitted.output.count(f"step {step}/100000 ") for step in range(1, saved + 2)] == [1] * (saved + 1)


PATIENT = """import time
from pathlib import Path
from recipes.quickstart import quickstart


def patient():
    while not Path("{go}").exists():
        time.sleep(0.1)
    return quickstart()
"""


def test_a_start_that_saved_nothing_is_not_requeued(idle: Cluster, tmp_path: Path) -> None:
    """As with a time limit shorter than the signal's lead: the job would be requeued forever."""
    recipe = tmp_path / "patient.py"
    recipe.write_text(PATIENT.format(go=tmp_path / "go"))
    settings = [str(recipe), "parallel.tensor=1", "rollout.engine=local", "--preflight=off", f"run.dir={tmp_path / 'run'}"]
    submitted = job(idle, tmp_path, "train.sbatch", "--nodes=1", *settings)
    submitted.wait_until(lambda: "start 1, nodes" in submitted.output, 60)
    idle.slurm("scancel", "--batch", "--signal=USR1", submitted.job_id)
    submitted.wait_until(lambda: "got SIGUSR1: before training started" in submitted.output, 60)
    (tmp_path / "go").touch()
    submitted.wait(120)
    assert "not requeued: no step was trained and saved before the signal" in submitted.output
    assert submitted.restarts == 0
    assert submitted.state == "FAILED"


TWO_STEPS = r"""#!/bin/bash
cd {root}
for k in 1 2; do
    srun --overlap -n 2 {python} -m megatron_entropic.cli train quickstart {settings} run.dir={folder}/step$k \
        > {folder}/step$k.out 2>&1 &
done
wait
"""


@pytest.mark.distributed
def test_two_steps_of_one_job_train_at_one_time(idle: Cluster, tmp_path: Path) -> None:
    """Under plain srun, of a script of the user's own; nobody tells them where to meet."""
    settings = "rollout.engine=local trainer.steps=1 trainer.export_hf=false trainer.report=false "
    settings += "batch.prompts_per_step=4 parallel.timeout_s=120"
    script = tmp_path / "two.sh"
    script.write_text(TWO_STEPS.format(root=ROOT, python=sys.executable, settings=settings, folder=tmp_path))
    command = ["sbatch", "--parsable", "--nodes=1", "--ntasks=2", f"--output={tmp_path}/job-%j.out", str(script)]
    environ = {**idle.environ, "OMP_NUM_THREADS": "1"}
    job_id = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.strip()
    Job(idle, job_id, tmp_path).wait(180)
    for step in (1, 2):
        assert lines_of(tmp_path / f"step{step}" / "metrics.jsonl") == 1, (tmp_path / f"step{step}.out").read_text()
