"""Who gets which GPU: ranks and servers of a node never share one, whatever started them. No GPU is needed to compute it."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from megatron_entropic.config import RolloutConfig
from megatron_entropic.launch import launcher
from megatron_entropic.rollout.vllm import command_line
from megatron_entropic.system.devices import (
    PlacementError,
    ranks_per_node,
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
        (",".join(UUIDS), 8, UUIDS),
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
    with listen("127.0.0.1") as listener:
        process = launcher._start(1, 3, [str(tmp_path / "none.yaml")], tmp_path, listener, [])
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
