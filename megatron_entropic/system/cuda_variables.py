"""CUDA's environment variables of a training rank, to be set before CUDA begins; servers, its children, do without them."""

from collections.abc import Mapping, MutableMapping

_CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
_ALLOCATORS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""torch knows its setting under both names. Megatron-Core and vLLM look at the first one."""
_EXPANDABLE = "expandable_segments:True"


def set_cuda_variables(environ: MutableMapping[str, str], *, model_parallel: bool) -> None:
    """Adds what a rank on a GPU needs and the user has not set; nothing of it means anything to a CPU.

    `model_parallel`: the layers are split over ranks. One connection then, because Megatron-Core starts a layer's communication
    before the product that is to hide it, and only a single hardware queue keeps that order. Segments that grow in place,
    because packed micro-batches differ in length, and blocks of one length leave gaps that the next does not fit.
    """
    if model_parallel:
        environ.setdefault(_CONNECTIONS, "1")
    if not any(name in environ for name in _ALLOCATORS):
        environ[_ALLOCATORS[0]] = _EXPANDABLE


def of_the_rank(environ: Mapping[str, str]) -> set[str]:
    """The variables in `environ` that a server must not inherit.

    A single connection would make vLLM's communication wait for its computation. An allocator setting that the user gave stays.
    """
    return {_CONNECTIONS} | ({_ALLOCATORS[0]} if environ.get(_ALLOCATORS[0]) == _EXPANDABLE else set())
