"""Makes Megatron-Core run on a machine without a GPU, over gloo, by replacing the CUDA calls it makes unconditionally.

`install()` patches this process once; every patch carries its reason, and `applied_patches()` lists them. On a machine with
a GPU nothing is patched. No other module of the project asks whether it runs on a CPU.
"""

import contextlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
_NORM_CHUNK = 1 << 22
"""Elements of a gradient that are held in float64 at once."""


class _Stream:
    """Stands in for torch.cuda.Stream. A class, because other packages write it in annotations: `torch.cuda.Stream | None`."""

    device = CPU

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, event: Any = None) -> "_Event":
        return _Event()

    def query(self) -> bool:
        return True


class _Event:
    """Stands in for torch.cuda.Event: on a CPU all earlier work is finished already."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def record(self, stream: Any = None) -> None: ...

    def wait(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end_event: Any) -> float:
        return 0.0


def _names_cuda(device: Any) -> bool:
    return (isinstance(device, str) and device.startswith("cuda")) or (isinstance(device, torch.device) and device.type == "cuda")


def _called_from_optimizer() -> bool:
    """Whether the torch function being dispatched was called by a module of megatron.core.optimizer (two frames up)."""
    return str(sys._getframe(2).f_globals.get("__name__", "")).startswith("megatron.core.optimizer")


class _CudaLiterals(TorchFunctionMode):
    """Rewrites the device="cuda", `.cuda()`, pin_memory and "torch.cuda.FloatTensor" literals in Megatron-Core's calls."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if kwargs:
            if _names_cuda(kwargs.get("device")):
                kwargs = {**kwargs, "device": CPU}
            if kwargs.get("pin_memory"):
                kwargs = {**kwargs, "pin_memory": False}
        if func is torch.Tensor.to and len(args) > 1 and _names_cuda(args[1]):
            args = (args[0], CPU, *args[2:])
        elif func is torch.Tensor.cuda or func is torch.Tensor.pin_memory:
            return args[0]
        elif func is torch.Tensor.type and len(args) == 1 and not kwargs and _called_from_optimizer():
            return func(*args).replace("torch.", "torch.cuda.")
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Patch:
    owner: Any
    name: str
    replacement: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.owner.__name__}.{self.name}: {self.reason}"


def _returning(value: Any) -> Callable[..., Any]:
    """A new function for every use: torch.compile refuses one function under two names of torch.cuda."""
    return lambda *args, **kwargs: value


def _get_rng_state(*args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    torch.set_rng_state(state)


def _manual_seed(seed: int) -> None:
    torch.manual_seed(seed)


def _carry_adam_step(original: Callable[..., None]) -> Callable[..., None]:
    def set_main_param_and_optimizer_states(self: Any, model_param: Any, tensors: dict[str, Any]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        if "step" in state and "step" not in tensors:
            tensors = {**tensors, "step": state["step"].clone()}
        original(self, model_param, tensors)

    return set_main_param_and_optimizer_states


def _as_numpy(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def _l2_norm(_chunk: int, _overflow: Any, tensor_lists: list[list[torch.Tensor]], _per_tensor: bool) -> tuple[torch.Tensor, None]:
    """The norm of all tensors together, [1] float32, as multi_tensor_l2norm of Transformer Engine and Apex returns it."""
    chunks = (chunk for tensors in tensor_lists for tensor in tensors for chunk in torch.split(tensor.flatten(), _NORM_CHUNK))
    squares = sum(float(torch.linalg.vector_norm(chunk, dtype=torch.float64)) ** 2 for chunk in chunks)
    return torch.tensor([math.sqrt(squares)], dtype=torch.float32), None


def _patches() -> list[_Patch]:
    import megatron.core.optimizer.clip_grads as megatron_clip_grads
    import megatron.core.tensor_parallel.random as megatron_random
    import megatron.core.transformer.moe.token_dispatcher as megatron_dispatcher
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    cuda: Any = torch.cuda
    load_states = DistributedOptimizer._set_main_param_and_optimizer_states
    rng = "without it the tracked random generators, and so dropout seeds, do nothing"
    streams = "CPU work is synchronous: nothing to wait for"
    return [
        _Patch(cuda, "current_device", _returning(CPU), "buffers are allocated with device=torch.cuda.current_device()"),
        _Patch(cuda, "set_device", _returning(None), "there is one device"),
        _Patch(cuda, "empty_cache", _returning(None), "there is no device cache"),
        _Patch(cuda, "manual_seed", _manual_seed, rng),
        _Patch(cuda, "get_rng_state", lambda *_, **__: _get_rng_state(), rng),
        _Patch(cuda, "set_rng_state", lambda state, *_, **__: _set_rng_state(state), rng),
        _Patch(megatron_random, "_get_cuda_rng_state", _get_rng_state, rng),
        _Patch(megatron_random, "_set_cuda_rng_state", _set_rng_state, rng),
        _Patch(cuda, "synchronize", _returning(None), streams),
        _Patch(cuda, "Stream", _Stream, streams),
        _Patch(cuda, "Event", _Event, streams),
        _Patch(cuda, "current_stream", _returning(_Stream()), streams),
        _Patch(cuda, "default_stream", _returning(_Stream()), streams),
        _Patch(cuda, "stream", lambda *_: contextlib.nullcontext(), streams),
        _Patch(
            megatron_dispatcher,
            "maybe_move_tensor_to_cpu",
            _as_numpy,
            "it makes numbers of the sizes of expert-parallel messages only where they are CUDA tensors",
        ),
        _Patch(
            megatron_clip_grads,
            "l2_norm_impl",
            _l2_norm,
            "its own adds up squares in float32: of 28 million they are 4e-5 off, in every layout by another amount",
        ),
        _Patch(
            DistributedOptimizer,
            "_set_main_param_and_optimizer_states",
            _carry_adam_step(load_states),
            "torch's AdamW keeps `step` per parameter, which loading a checkpoint would drop",
        ),
    ]


_applied: list[str] = []


def install() -> None:
    """Patches torch.cuda and Megatron-Core for this process, once; does nothing where CUDA is available.

    To be called before the model is built, in the thread that runs it: the rewriting of device literals is per thread.
    """
    if _applied or torch.cuda.is_available():
        return
    for patch in _patches():
        setattr(patch.owner, patch.name, patch.replacement)
        _applied.append(str(patch))
    mode: Any = _CudaLiterals()
    mode.__enter__()
    _applied.append('device="cuda", .cuda(), pin_memory, "torch.cuda.FloatTensor": literals in Megatron-Core, rewritten to the CPU')
    torch.compiler.set_stance("force_eager")
    _applied.append("torch.compile: Megatron-Core's small functions cost more to compile than they save on a CPU")


def applied_patches() -> tuple[str, ...]:
    """Patches that `install()` applied in this process, one line each with its reason; empty before it ran and on GPUs."""
    return tuple(_applied)
