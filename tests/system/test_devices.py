"""Who gets which GPU: ranks and servers of a node never share one, whatever started them. No GPU is needed to compute it."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from megatron_entropic.config import RolloutConfig
from megatron_entropic.launch import launcher
from megatron_entropic.rollout.vllm import command_line
from megatron_entropic.system.devices import (
    PlacementError,
    ask_for_cpu,
    cpu_is_asked_for,
    rank_device,
    ranks_per_node,
    refuse_slice,
    server_devices,
    training_ranks_here,
    visible_devices,
    without_training_ranks,
)
from megatron_entropic.system.rendezvous import listen

UUIDS = ["GPU-aa", "GPU-bb", "GPU-cc", "GPU-dd"]


@pytest.mark.parametrize(
    ("listed", "count", "devices"),
    [
        (None, 0, []),
        (None, 1, ["0"]),
        (None, 8, list("01234567")),
        ("", 8, []),
        ("-1", 8, []),
        ("2,3", 8, ["2", "3"]),
        ("0, 1, 2, 3", 8, list("0123")),
        ("0,1,-1,3", 8, ["0", "1"]),
        ("0,1,9", 2, ["0", "1"]),
        (",".join(UUIDS), 8, UUIDS),
        (",".join(UUIDS[2:]), 2, UUIDS[2:]),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(listed: str | None, count: int, devices: Sequence[str]) -> None:
    assert visible_devices(listed, count) == devices


@pytest.mark.parametrize(
    ("listed", "reason"), [("MIG-1234,MIG-5678", "slice of a GPU"), ("0,MIG-1", "slice of a GPU"), ("1,1", "twice")]
)
def test_devices_that_cannot_be_used_are_refused(listed: str, reason: str) -> None:
    with pytest.raises(PlacementError, match=reason):
        visible_devices(listed, 8)


@pytest.mark.parametrize(
    ("gpus", "ranks", "servers", "tensor"),
    [(1, 0, 1, 1), (2, 1, 1, 1), (4, 2, 2, 1), (4, 2, 1, 2), (8, 4, 4, 1), (8, 4, 2, 2), (8, 0, 2, 4), (8, 0, 8, 1)],
)
def test_every_gpu_has_one_user(gpus: int, ranks: int, servers: int, tensor: int) -> None:
    devices = visible_devices(None, gpus)
    used = [*devices[:ranks], *(device for server in range(servers) for device in server_devices(devices, ranks, server, tensor))]
    assert len(used) == len(set(used)) == ranks + servers * tensor


@pytest.mark.parametrize(("gpus", "ranks", "server", "tensor"), [(1, 1, 0, 1), (0, 0, 0, 1), (4, 4, 0, 1), (8, 4, 2, 2), (8, 7, 0, 2)])
def test_servers_that_do_not_fit_are_refused(gpus: int, ranks: int, server: int, tensor: int) -> None:
    with pytest.raises(PlacementError, match=rf"rollout server {server} needs .* shows {gpus} .*{ranks} training rank"):
        server_devices(visible_devices(None, gpus), ranks, server, tensor)


@pytest.mark.parametrize(
    ("gpus", "server", "tensor", "devices"),
    [(1, 0, 1, ["0"]), (2, 1, 1, ["1"]), (4, 0, 2, ["0", "1"]), (4, 1, 2, ["2", "3"]), (8, 1, 4, list("4567"))],
)
def test_servers_share_the_ranks_gpus_when_asked_to(gpus: int, server: int, tensor: int, devices: Sequence[str]) -> None:
    assert server_devices(visible_devices(None, gpus), gpus, server, tensor, shared=True) == devices


@pytest.mark.parametrize(("gpus", "server", "tensor"), [(0, 0, 1), (1, 1, 1), (1, 0, 2), (4, 2, 2)])
def test_no_two_servers_share_a_gpu(gpus: int, server: int, tensor: int) -> None:
    with pytest.raises(PlacementError, match=r"no two servers one: lower rollout\.servers"):
        server_devices(visible_devices(None, gpus), gpus, server, tensor, shared=True)


@pytest.mark.parametrize(("gpus", "ranks", "hint"), [(1, 1, True), (2, 2, True), (4, 4, True), (0, 1, False), (0, 0, False)])
def test_a_machine_that_is_full_of_ranks_is_told_of_sharing(gpus: int, ranks: int, hint: bool) -> None:
    with pytest.raises(PlacementError) as refused:
        server_devices(visible_devices(None, gpus), ranks, 0, 1)
    assert ("rollout.share_gpu=true" in str(refused.value)) == hint


STEP = {"SLURM_LOCALID": "3", "SLURM_GPUS_ON_NODE": "4"}
"""Task 3 of a node, of which SLURM gave the step 4 GPUs."""


@pytest.mark.parametrize(
    ("local_rank", "seen", "environ", "device"),
    [
        (0, 1, {}, 0),
        (3, 4, {}, 3),
        (7, 8, {"SLURM_LOCALID": "7"}, 7),
        (3, 1, STEP, 0),
        (3, 1, {"SLURM_LOCALID": "3", "SLURM_GPUS_PER_TASK": "1"}, 0),
        (3, 1, {"SLURM_LOCALID": "3", "SLURM_TRES_PER_TASK": "cpu=8,gres/gpu:h100=1"}, 0),
        (3, 1, {"SLURM_LOCALID": "3", "SLURM_GPU_BIND": "single:1"}, 0),
        (3, 1, {"SLURM_LOCALID": "3", "SLURM_NTASKS_PER_GPU": "1"}, 0),
        (1, 2, {"SLURM_LOCALID": "1", "SLURM_GPUS_PER_TASK": "2"}, 1),
    ],
)
def test_a_rank_takes_the_gpu_of_its_local_rank_or_the_one_it_was_given(
    local_rank: int, seen: int, environ: dict[str, str], device: int
) -> None:
    assert rank_device(local_rank, seen, environ) == device


@pytest.mark.parametrize(
    ("local_rank", "seen", "environ"),
    [
        (1, 1, {}),  # two ranks of `train` on a machine with one GPU
        (8, 8, {}),
        (1, 1, {**STEP, "SLURM_LOCALID": "0"}),  # torchrun or `train` in one task: its ranks all see the same GPU
        (1, 1, {"SLURM_LOCALID": "1", "SLURM_GPUS_ON_NODE": "1"}),
        (3, 1, {**STEP, "SLURM_NTASKS_PER_GPU": "2"}),
        (3, 1, {**STEP, "SLURM_GPU_BIND": "none"}),
        (3, 1, {"SLURM_LOCALID": "3", "SLURM_TRES_PER_TASK": "cpu=8"}),
        (3, 2, STEP),
    ],
)
def test_a_rank_without_a_gpu_of_its_own_is_refused(local_rank: int, seen: int, environ: dict[str, str]) -> None:
    with pytest.raises(PlacementError, match=f"LOCAL_RANK={local_rank} has no GPU of its own: this process sees {seen}") as refused:
        rank_device(local_rank, seen, environ)
    assert ("an srun without --gpus-per-task" in str(refused.value)) == ("SLURM_LOCALID" in environ)


@pytest.mark.parametrize(
    ("listed", "asked"),
    [
        *((listed, True) for listed in ("", " ", "-1", "-1,0", "NoDevFiles", "none")),
        *((listed, False) for listed in (None, "0", "3,1", "GPU-aa", "MIG-1")),
        *((listed, False) for listed in ("all", "cuda:0", "[0,1]", "gpu0")),
    ],
)
def test_the_cpu_is_asked_for_by_a_list_without_devices_and_not_by_one_that_is_misspelt(listed: str | None, asked: bool) -> None:
    assert cpu_is_asked_for({} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}) == asked
    environ: dict[str, str] = {}
    ask_for_cpu(environ)
    assert cpu_is_asked_for(environ)


@pytest.mark.parametrize("name", ["NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA H100 80GB HBM3 MIG 3g.40gb"])
def test_slices_are_known_by_their_names(name: str) -> None:
    with pytest.raises(PlacementError, match="slice of a GPU"):
        refuse_slice(name)
    refuse_slice(name.partition(" MIG")[0])


def test_ranks_of_this_node_are_known_or_asked_for() -> None:
    assert training_ranks_here({}) == 1
    assert training_ranks_here({"WORLD_SIZE": "1"}) == 1
    assert training_ranks_here({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}) == 8
    with pytest.raises(PlacementError, match="LOCAL_WORLD_SIZE is not set beside WORLD_SIZE=16"):
        training_ranks_here({"WORLD_SIZE": "16"})
    environ = {"LOCAL_WORLD_SIZE": "8"}
    without_training_ranks(environ)
    assert training_ranks_here(environ) == 0


@pytest.mark.parametrize(("tasks", "node", "ranks"), [("4", 0, 4), ("4(x2)", 1, 4), ("4(x2),3", 2, 3), ("2,3(x2),1", 2, 3)])
def test_slurms_tasks_per_node(tasks: str, node: int, ranks: int) -> None:
    assert ranks_per_node(tasks, node) == ranks


def test_slurms_tasks_of_a_node_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"SLURM_STEP_TASKS_PER_NODE=4\(x2\) has no node 2"):
        ranks_per_node("4(x2)", 2)


def test_ranks_that_train_starts_know_how_many_share_the_node(tmp_path: Path) -> None:
    os.mkfifo(settings := tmp_path / "settings.yaml")  # which the rank waits for: it has not ended when it is looked at
    with listen("127.0.0.1") as listener:
        process = launcher._start(1, 3, [str(settings)], tmp_path, listener, [])
    try:
        environ = dict(entry.split("=", 1) for entry in Path(f"/proc/{process.pid}/environ").read_text().split("\0") if "=" in entry)
    finally:
        process.kill()
        process.wait()
    assert (environ["LOCAL_RANK"], environ["LOCAL_WORLD_SIZE"]) == ("1", "3")


def test_servers_of_a_run_that_train_started_are_on_other_gpus_than_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    cfg = RolloutConfig(servers=2, tensor=2)
    assert [command_line._gpu_environment(cfg, server)["CUDA_VISIBLE_DEVICES"] for server in range(2)] == ["4,5", "6,7"]


@pytest.mark.parametrize(("listed", "gpu"), [(None, "0"), ("3", "3"), ("GPU-aa", "GPU-aa")])
def test_an_evaluation_uses_the_only_gpu_of_a_machine(listed: str | None, gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(os, "environ", {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed})
    with pytest.raises(PlacementError, match=r"rollout\.share_gpu=true"):
        command_line._gpu_environment(RolloutConfig(), 0)
    without_training_ranks(os.environ)
    assert command_line._gpu_environment(RolloutConfig(), 0)["CUDA_VISIBLE_DEVICES"] == gpu
