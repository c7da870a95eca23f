"""Jobs submitted through NeMo-Run, on the emulated cluster: what --dryrun shows is what runs, and it trains to the end."""

import re
from pathlib import Path

import pytest

from megatron_entropic.observability.metrics import read_metrics
from tests.recipes.launch.environment import SHRUNKEN, launch
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.distributed]


def without_number(script: str) -> str:
    """A job's script without the experiment's number, which is the time of day."""
    return re.sub(r"(quickstart_)\d{15,}", r"\1N", script)


def commands_of(script: str) -> list[str]:
    return [line for line in script.splitlines() if line.strip() and not line.startswith("#SBATCH")]


def run_as_shown(cluster: Cluster, folder: Path, *arguments: str, timeout: float) -> str:
    """Shows the job, submits it, waits for its end; returns its output."""
    shown = launch(*arguments, "--dryrun", home=folder, environ=cluster.environ)
    assert shown.returncode == 0, shown.stderr
    submitted = launch(*arguments, home=folder, environ=cluster.environ)
    job_id = re.search(r"^submitted job (\d+) as (.*)$", submitted.stdout, flags=re.MULTILINE)
    assert job_id, submitted.stdout + submitted.stderr
    held = cluster.slurm("scontrol", "write", "batch_script", job_id[1], "-")
    assert without_number(Path(job_id[2]).read_text()) == without_number(shown.stdout)
    if "#SBATCH hetjob" in shown.stdout:  # then SLURM holds it without empty lines, and without the second component's flags
        assert commands_of(without_number(held)) == commands_of(without_number(shown.stdout))
    else:
        assert without_number(held) == without_number(shown.stdout)
    fields = cluster.wait_for_job(job_id[1], timeout=timeout)
    log = next((folder / "launch").rglob(f"log-*_{job_id[1]}.out")).read_text()
    assert fields["JobState"] == "COMPLETED", log
    return log


def test_a_job_trains_to_the_end(idle: Cluster, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    settings = [*SHRUNKEN, "parallel.tensor=2", f"run.dir={run_dir}"]
    job = ["--executor=slurm", "--nodes=2", "--ranks-per-node=1", "--preflight=quick", "--partition=main", "--time=60"]
    log = run_as_shown(idle, tmp_path, *settings, *job, timeout=120)
    assert "2 ranks on n1, n2" in log
    assert [line["step"] for line in read_metrics(run_dir / "metrics.jsonl")] == [0, 1]
    assert (run_dir / "hf" / "model.safetensors").exists()


@pytest.mark.vllm
def test_a_heterogeneous_job_trains_on_one_group_and_serves_on_the_other(idle: Cluster, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    settings = [*SHRUNKEN, "parallel.tensor=2", f"run.dir={run_dir}", "rollout.engine=vllm", "rollout.servers=1"]
    job = ["--executor=slurm-het", "--nodes=2", "--gpus-per-node=1", "--fleet-gpus-per-node=2", "--preflight=off"]
    log = run_as_shown(idle, tmp_path, *settings, *job, timeout=240)
    assert "2 ranks on n1, n2, 1 servers on n3" in log
    assert [line["step"] for line in read_metrics(run_dir / "metrics.jsonl")] == [0, 1]
    assert max(line["rollout/logprob_gap"] for line in read_metrics(run_dir / "metrics.jsonl")) <= 1e-3


def test_what_sbatch_refuses_is_told_in_one_line(idle: Cluster, tmp_path: Path) -> None:
    done = launch(*SHRUNKEN, "--executor=slurm", "--partition=nowhere", home=tmp_path, environ=idle.environ)
    assert done.returncode == 2
    assert "invalid partition specified: nowhere" in done.stderr
    assert done.stderr.count("\n") == 1


def test_waiting_is_refused_where_slurm_keeps_no_accounts(idle: Cluster, tmp_path: Path) -> None:
    """NeMo-Run asks sacct alone, and would cancel the job after a minute of silence."""
    done = launch(*SHRUNKEN, "--executor=slurm", "--wait", home=tmp_path, environ=idle.environ)
    assert done.returncode == 2
    assert "waiting needs SLURM's accounting, and sacct says: Slurm accounting storage is disabled" in done.stderr
    assert idle.slurm("squeue", "--noheader") == ""
