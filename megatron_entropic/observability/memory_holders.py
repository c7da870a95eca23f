"""Who holds a rank's memory: what there is of each kind, what planning expects, and the settings that lower it."""

import gc
import resource
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from megatron_entropic import platform
from megatron_entropic.config import Config
from megatron_entropic.distributed.parallel import Parallel
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.planning.activations import Implementation, Unevenness
from megatron_entropic.planning.cluster import Assumptions
from megatron_entropic.planning.layouts import implementation
from megatron_entropic.planning.passes import PassMemory
from megatron_entropic.planning.training_memory import training_memory
from megatron_entropic.planning.workload import Workload
from megatron_entropic.policy.engine import Policy


@dataclass(frozen=True)
class Holding:
    """One kind of memory. Bytes; None: not known, as `now` of what autograd keeps, which Python cannot see."""

    name: str
    now: int | None
    expected: float | None
    lowered_by: str


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of a process: what tensors take on its GPU, or what of it is in the machine's memory, now and at most."""

    now: int
    peak: int
    available: int
    """Of the GPU, or of the machine, left to anyone."""
    where: str


def process_memory() -> ProcessMemory:
    """This process's."""
    if platform.accelerated():
        free, _ = torch.cuda.mem_get_info()
        return ProcessMemory(
            torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated(), free, f"{platform.device_name()}, in torch's tensors"
        )
    now, peak = psutil.Process().memory_info().rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return ProcessMemory(now, max(now, peak), psutil.virtual_memory().available, "the machine's memory (RSS)")


def held_by(policy: Policy) -> dict[str, int]:
    """Bytes of the policy's weights, gradients, masters and moments on this rank; a tensor counts for the first that has it."""
    buffers = [*policy.ddp.buffers, *policy.ddp.expert_parallel_buffers]
    kinds: dict[str, Iterable[torch.Tensor]] = {
        "weights": [*policy.model.parameters(), *policy.model.buffers()],
        "gradients": [buffer.grad_data for buffer in buffers],
        "masters": [parameter for group in policy.optimizer.param_groups for parameter in group["params"]],
        "moments": _moments(policy.optimizer),
    }
    seen: set[int] = set()
    return {name: sum(_new_bytes(tensor, seen) for tensor in tensors) for name, tensors in kinds.items()}


def _moments(optimizer: Any) -> Iterator[torch.Tensor]:
    """Tensors of the state of Megatron's optimizer, or of each in a chain of them."""
    for each in getattr(optimizer, "chained_optimizers", [optimizer]):
        for state in each.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def _new_bytes(tensor: torch.Tensor, seen: set[int]) -> int:
    """Bytes of the tensor's storage, 0 where it was seen before."""
    storage = tensor.untyped_storage()
    if storage.data_ptr() in seen:
        return 0
    seen.add(storage.data_ptr())
    return storage.nbytes()


def holdings(cfg: Config, parallel: Parallel, policy: Policy | None) -> list[Holding]:
    """Everything that a training rank holds; `policy` None: it was not made yet."""
    now = held_by(policy) if policy else {}
    expected = _expected(cfg, parallel, policy.arch) if policy else {}
    sharded, split = "parallel.data (they are split over it)", "parallel.tensor, parallel.pipeline"
    lowered_by = {
        "weights": split if cfg.model.dtype == "bfloat16" else f"{split}, model.dtype=bfloat16",
        "gradients": split,
        "masters": f"{sharded}, {split}",
        "moments": f"{sharded}, {split}",
        "activations": f"model.recompute=full, a smaller batch.max_tokens_per_micro_batch, {split}, parallel.sequence=true",
        "logits tiles and the output layer": "a smaller batch.max_tokens_per_micro_batch, parallel.tensor",
        "an optimizer step's own": split,
        "weight sync": "rollout.servers on other devices",
    }
    return [Holding(name, now.get(name), expected.get(name), settings) for name, settings in lowered_by.items()]


def _expected(cfg: Config, parallel: Parallel, arch: Architecture) -> dict[str, float]:
    """What planning expects of this rank's stage, in bytes by the name of the holder."""
    layers: Implementation = implementation(cfg.model) if platform.accelerated() else "local"
    micro_batches = Workload.of(cfg, Assumptions()).micro_batches
    size, tokens = platform.memory_size(), cfg.batch.max_tokens_per_micro_batch
    stage = training_memory(arch, cfg, implementation=layers, micro_batches=micro_batches, gpu_bytes=size)[parallel.pp_rank]
    passes = PassMemory(arch, cfg, layers, Unevenness(), tokens=tokens, micro_batches=micro_batches, gpu_bytes=size)
    masters = stage.model.optimizer / 3 if cfg.model.dtype == "bfloat16" else 0.0  # one float32 copy beside two moments
    return {
        "weights": stage.model.parameters,
        "gradients": stage.model.gradients,
        "masters": masters,
        "moments": stage.model.optimizer - masters,
        "activations": stage.kept,
        "logits tiles and the output layer": passes.head_working(parallel.pp_rank),
        "an optimizer step's own": stage.optimizer_working,
        "weight sync": stage.sync,
    }


@dataclass(frozen=True)
class LiveTensor:
    """A tensor that Python knows of."""

    shape: tuple[int, ...]
    dtype: str
    device: str
    bytes: int


_PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Types of tensors that have memory of their own; others stand for several, or for none."""


def largest_tensors(most: int) -> tuple[list[LiveTensor], int]:
    """(the `most` largest tensors that Python knows of, each storage once; bytes of all). Not what only autograd keeps."""
    seen: set[int] = set()
    found = []
    for thing in gc.get_objects():
        if type(thing) not in _PLAIN or thing.layout != torch.strided or thing.device.type == "meta":
            continue
        if size := _new_bytes(thing, seen):
            found.append(LiveTensor(tuple(thing.shape), str(thing.dtype).removeprefix("torch."), str(thing.device), size))
    found.sort(key=lambda tensor: tensor.bytes, reverse=True)
    return found[:most], sum(tensor.bytes for tensor in found)
