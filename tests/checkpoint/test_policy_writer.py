"""A checkpoint holds the state of the moment it was begun, whatever training does while it is written."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from megatron_entropic import platform
from megatron_entropic.checkpoint.policy_state import load_policy
from megatron_entropic.checkpoint.policy_writer import PolicyWriter, Written, copy_to_host
from megatron_entropic.checkpoint_files.manifest import fingerprint
from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.control import Coefficients
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.policy.batching import Batch, Sample
from megatron_entropic.policy.engine import Policy
from tests.run_ranks import run_ranks
from tests.tiny_models import save_divisible

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
LAYOUTS = {"one": [], "tp2": ["parallel.tensor=2"], "dp2": ["parallel.data=2"], "pp2": ["parallel.pipeline=2"]}


def settings(model: Path, *layout: str) -> Config:
    return load_config("quickstart", ["parallel.tensor=1", "optimizer.lr=1e-2", f"model.hf_path={model}", *layout])


def batch(seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 99, (6, 8), generator=draw).tolist()
    return Batch([Sample(row[:3], row[3:], [-4.0] * 5, (-1.0) ** number) for number, row in enumerate(ids)])


def state(policy: Policy) -> list[torch.Tensor]:
    """Copies of all weights and of all the optimizer holds of this rank: master weights, moments."""
    optimizers = getattr(policy.optimizer, "chained_optimizers", [policy.optimizer])
    held = [tensor for each in optimizers for entry in each.optimizer.state.values() for tensor in entry.values()]
    masters = [tensor for each in optimizers for group in each.optimizer.param_groups for tensor in group["params"]]
    return [tensor.detach().clone() for tensor in [*policy.model.parameters(), *masters, *held]]


def write(policy: Policy, folder: Path, *, meanwhile: Any = None) -> list[Written]:
    """Writes a checkpoint of now into `folder`, with `meanwhile` called before the first byte is written; what each rank wrote."""
    if policy.parallel.rank == 0:
        folder.mkdir()
    dist.barrier()
    writer = PolicyWriter(policy, folder)
    if meanwhile:
        meanwhile()
    writer.start()
    while not writer.done:
        pass
    ranks: list[Any] = [None] * policy.parallel.world_size
    dist.all_gather_object(ranks, writer.written)
    if policy.parallel.rank == 0 and not any(written.error for written in ranks):
        files = writer.finish(ranks)
        assert files == {name: fingerprint(folder / name) for name in files}
        assert {path.name for path in folder.iterdir()} == {*files, ".metadata", "metadata.json"}
    dist.barrier()
    return ranks


def save_train_load(cfg: Config, folder: Path) -> tuple[bool, bool]:
    """(training continued and changed the state, the checkpoint holds the state from before)."""
    policy = Policy(cfg, initialize_parallel(cfg.parallel, 0))
    policy.update(batch(1), Coefficients())
    saved = state(policy)
    ranks = write(policy, folder, meanwhile=lambda: policy.update(batch(2), Coefficients()))
    assert [written.error for written in ranks] == [None] * len(ranks)
    moved = [not torch.equal(a, b) for a, b in zip(saved, state(policy), strict=True)]

    read = Policy(cfg, policy.parallel)
    load_policy(read, folder, updates=1)
    equal = [torch.equal(a, b) for a, b in zip(saved, state(read), strict=True)]
    return sum(moved) > len(moved) // 2, all(equal)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_file_holds_the_step_that_was_saved_although_training_went_on(tmp_path: Path, layout: str) -> None:
    cfg = settings(save_divisible(tmp_path / "model"), *LAYOUTS[layout])
    results = run_ranks(save_train_load, cfg.parallel.world_size, cfg, tmp_path / "checkpoint")
    assert results == [(True, True)] * cfg.parallel.world_size


def test_also_tensors_that_megatron_hands_out_without_a_copy_are_copied() -> None:
    """On a CPU those are all that fill their storage: none today, but that depends on Megatron's buffers."""
    live = torch.zeros(3)
    buckets = [("file", "file", ([], [("item", live)]))]
    copy_to_host(buckets)
    live += 1
    assert buckets[0][2][1][0][1].tolist() == [0, 0, 0]


def write_where_a_file_cannot_be_made(cfg: Config, folder: Path) -> list[str | None]:
    policy = Policy(cfg, initialize_parallel(cfg.parallel, 0))
    policy.update(batch(1), Coefficients())

    def occupy() -> None:
        if policy.parallel.rank == 0:
            (folder / "__1_0.distcp").mkdir()
        dist.barrier()

    return [written.error for written in write(policy, folder, meanwhile=occupy)]


def test_a_rank_that_cannot_write_says_which_file(tmp_path: Path) -> None:
    cfg = settings(save_divisible(tmp_path / "model"), "parallel.tensor=2")
    for errors in run_ranks(write_where_a_file_cannot_be_made, 2, cfg, tmp_path / "checkpoint"):
        assert errors[0] is None
        assert f"{tmp_path / 'checkpoint' / '__1_0.distcp'}: Is a directory; " in errors[1]
        assert errors[1].endswith(" GB free there")


class PinnedCopies(TorchFunctionMode):
    """Stands in for pinned memory, which this build of torch has not: notes what was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty_like:
            self.events.append(f"pinned {kwargs.pop('pin_memory')}")
        elif func is torch.Tensor.copy_:
            self.events.append(f"without waiting {kwargs['non_blocking']}")
        return func(*args, **kwargs)


def test_copies_from_a_gpu_are_pinned_and_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "accelerated", lambda: True)
    buckets = [("file", "file", ([], [("one", torch.ones(3)), ("two", torch.ones(2, 4).t())]))]
    with PinnedCopies() as copies:
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: copies.events.append("waited"))
        copy_to_host(buckets)
    assert copies.events == ["pinned True", "without waiting True"] * 2 + ["waited"]
    assert [tuple(tensor.shape) for _, tensor in buckets[0][2][1]] == [(3,), (4, 2)]
