"""Training jobs on an emulated cluster: several nodes, a real vLLM server on another node, requeue, node failure, time limit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from megatron_entropic.observability.metrics import read_metrics
from megatron_entropic.rollout.recording import read_rollouts
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import REAL_RUN, STEPS, Job, job, lines_of
from tests.tiny_models import TINY_DECOMPOSE

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.distributed]


def without_times(run_dir: Path) -> list[dict[str, Any]]:
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith(("time/", "perf/"))} for line in lines]


@pytest.mark.vllm
def test_two_nodes_train_and_a_third_serves(replayable: Path) -> None:
    """Every step was sampled from the other node's server with exactly the trainer's weights, and the model is exported."""
    metrics = read_metrics(replayable / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(STEPS))
    assert max(line["rollout/logprob_gap"] for line in metrics) <= 1e-3
    record = read_rollouts(replayable / "rollouts", STEPS - 1)[0].rollout
    assert (record.first_version, record.server) == (STEPS - 1, "vllm_0")
    assert load_file(replayable / "hf" / "model.safetensors").keys() == load_file(TINY_DECOMPOSE / "model.safetensors").keys()
    output = next(replayable.parent.glob("job-*.out")).read_text()
    assert "4 ranks on n1, n2, 1 servers on n3" in output
    assert "preflight: 3 nodes are fit for the run" in output
    assert "[rank 0 n1]" in output
    assert "[fleet n3] rollout server 0 (http://10." in output
    assert {path.name for path in (replayable / "logs").glob("rank-*.log")} == {f"rank-{rank}.log" for rank in range(4)}


@pytest.mark.vllm
def test_a_heterogeneous_job_trains_on_one_group_and_serves_on_the_other(idle: Cluster, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    settings = ["quickstart", "rollout.servers=1", "trainer.steps=2", "batch.prompts_per_step=8", f"run.dir={run_dir}"]
    split = ["--nodes=2", "--gpus-per-node=1", ":", "--nodes=1", "--gpus-per-node=2"]
    finished = job(idle, tmp_path, "train_het.sbatch", *split, *settings, "--preflight=quick").wait(150)
    assert finished.state == "COMPLETED", finished.output
    assert "2 ranks on n1, n2, 1 servers on n3" in finished.output
    assert lines_of(run_dir / "metrics.jsonl") == 2
    assert (run_dir / "hf" / "model.safetensors").exists()
    assert not finished.processes()


@pytest.fixture(scope="module")
def replay(replayable: Path) -> tuple[str, ...]:
    """A run over two nodes that replays the real one's rollouts."""
    settings = [setting for setting in REAL_RUN if not setting.startswith(("parallel", "--ranks"))]
    layout = ["--ranks-per-node=1", "parallel.tensor=2", "--preflight=off", "checkpoint.every=2", "trainer.export_hf=false"]
    return (*settings, *layout, "rollout.engine=replay", f"rollout.replay_path={replayable / 'rollouts'}")


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, replay: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    finished = job(cluster, folder, "train.sbatch", "--nodes=2", *replay, f"run.dir={folder / 'run'}").wait(120)
    assert finished.state == "COMPLETED", finished.output
    return without_times(folder / "run")


def requeue(job: Job) -> None:
    job.cluster.slurm("scontrol", "requeue", job.job_id)


def lose_a_node(job: Job) -> None:
    """SLURM ends the job on the other nodes, and queues it again until it has as many nodes as it needs."""
    job.cluster.slurm("scontrol", "update", "nodename=n2", "state=down", "reason=test")


@pytest.mark.parametrize("disturb", [requeue, lose_a_node])
def test_a_disturbed_run_is_the_undisturbed_one(
    idle: Cluster, replay: tuple[str, ...], undisturbed: list[dict[str, Any]], tmp_path: Path, disturb: Callable[[Job], None]
) -> None:
    """Bit for bit, though the ranks were killed in mid-run and started again by SLURM."""
    run_dir = tmp_path / "run"
    submitted = job(idle, tmp_path, "train.sbatch", "--nodes=2", *replay, f"run.dir={run_dir}")
    submitted.wait_until(lambda: lines_of(run_dir / "metrics.jsonl") >= 5, 90)
    disturb(submitted)
    submitted.wait(120)
    assert submitted.state == "COMPLETED", submitted.output
    assert submitted.restarts == 1
    assert "resuming the run in" in submitted.output
    assert "resumed from" in submitted.output
    assert without_times(run_dir) == undisturbed
    assert not submitted.processes()
