"""Contents of a checkpoint, without loading a weight."""

import json
import math
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_entropic.checkpoint_files.kind import Located
from megatron_entropic.checkpoint_files.manifest import MANIFEST, check, fingerprint
from megatron_entropic.checkpoint_files.store import STATE
from megatron_entropic.conversion.distributed_reader import DistributedReader
from megatron_entropic.conversion.exporting import SUMS_FILE, blocks, nbytes
from megatron_entropic.conversion.keys import is_optimizer
from megatron_entropic.conversion.view import DistributedView
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.check import check_hf_dir
from megatron_entropic.hf.files import HFReader
from megatron_entropic.hf.headers import CheckpointError
from megatron_entropic.hf.values import count_not_finite, is_finite

LAYOUT_FIELDS = ("tensor", "pipeline", "context", "expert", "data")


def describe(located: Located, *, checksums: bool = False, values: bool = False) -> str:
    """Architecture, sizes, and of a training checkpoint step, layout and controller.

    Raises CheckpointError naming every problem of a checkpoint that is not sound: by headers and sizes, with `checksums` by every
    byte, with `values` also the first tensor with NaN or infinity (it brings a config.json then).
    """
    lines = _describe_hf(located.path, checksums) if located.weights is None else _describe_distributed(located, checksums)
    if values:
        _check_values(located)
    return "\n".join([f"{located.path}: sound{_extent(checksums, values)}", *(f"  {line}" for line in lines)])


def _extent(checksums: bool, values: bool) -> str:
    """Extent of the check: what was looked at, and what was not."""
    read = [what for asked, what in ((checksums, "all checksums"), (values, "all values")) if asked]
    seen = f", {' and '.join(read)} included" if read else " by its headers and sizes"
    return seen if values else f"{seen}; no weight was checked for NaN and infinity: --values does that"


def _check_values(located: Located) -> None:
    if located.companions is None:
        raise CheckpointError(f"{located.path}: no config.json beside it, so its weights have no names")
    arch = Architecture.from_hf(located.companions)
    with HFReader(located.path) if located.weights is None else DistributedView(located.weights, arch) as tensors:
        for name in tensors.names():
            for block in blocks(tensors, name):
                if block.numel() and not is_finite(block):
                    found = count_not_finite(block)
                    dtype = str(block.dtype).removeprefix("torch.")
                    raise CheckpointError(f"{located.path}: {found} value(s) or more of tensor {name} are NaN or infinite in {dtype}")


def _describe_hf(hf_dir: Path, checksums: bool) -> list[str]:
    arch = Architecture.from_hf(hf_dir)
    check_hf_dir(hf_dir, arch)
    if checksums:
        _check_sums(hf_dir)
    with HFReader(hf_dir) as reader:
        files = {reader.file(name).name for name in reader.names()}
        return ["Hugging Face directory", _architecture(arch), _sizes(reader, len(files)), _largest(reader)]


def _describe_distributed(located: Located, checksums: bool) -> list[str]:
    assert located.weights is not None
    _check_manifest(located.path, checksums)
    with DistributedReader(located.weights) as reader:
        if problems := reader.missing():
            raise CheckpointError("\n".join(problems))
        optimizer = [tensor for key, tensor in reader.tensors.items() if is_optimizer(key)]
        files = len(reader.files())
    lines = _state(located.path)
    if located.companions is None:
        return [*lines, f"{files} file(s); no config.json beside it: which model it is cannot be said (see export --like)"]
    arch = Architecture.from_hf(located.companions)
    with DistributedView(located.weights, arch) as view:
        lines += [_architecture(arch), _sizes(view, files), _largest(view)]
    if optimizer:
        lines.append(f"optimizer: {len(optimizer)} stacked tensors, {sum(tensor.nbytes for tensor in optimizer) / 1e9:.3g} GB")
    return lines


def _state(path: Path) -> list[str]:
    """Content of state.json: the source of an imported checkpoint, the progress of a run's."""
    if not (path / STATE).is_file():
        return ["distributed checkpoint of another maker"]
    state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    if state.get("kind") == "imported":
        split = ", ".join(f"{axis} {size}" for axis, size in state["split"].items())
        return [f"imported from {state['source']}, cut for {split} (every layout can load it)"]
    layout = state["settings"]["parallel"]
    control = state["settings"]["control"]
    return [
        f"training checkpoint after {state['step']} steps, {state['updates']} optimizer updates",
        "saved by " + " x ".join(f"{axis} {layout[axis]}" for axis in LAYOUT_FIELDS if axis in layout) + " (every layout can load it)",
        f"control {control['kind']}, target {control['target_entropy']}; its state:",
        *(f"  {line}" for line in textwrap.wrap(", ".join(_flat(state["controller"])), width=110, break_on_hyphens=False)),
    ]


def _flat(state: Any, name: str = "") -> Iterator[str]:
    """`a.b=1` for every number of nested dicts and lists."""
    if isinstance(state, dict | list):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield f"{name}={state:.6g}" if isinstance(state, float) else f"{name}={state}"


def _architecture(arch: Architecture) -> str:
    experts = f", {arch.num_experts} experts" if arch.num_experts else ""
    return (
        f"{arch.architecture}: {arch.num_layers} layers, hidden {arch.hidden_size}, feed-forward {arch.ffn_hidden_size}{experts}, "
        f"{arch.num_heads} heads of {arch.head_dim} ({arch.num_kv_heads} key-value), vocabulary {arch.vocab_size}, "
        f"{'tied' if arch.tied_embeddings else 'untied'} embeddings"
    )


def _sizes(tensors: HFReader | DistributedView, files: int) -> str:
    names = tensors.names()
    parameters = sum(math.prod(tensors.shape(name)) for name in names)
    gigabytes = sum(nbytes(tensors, name) for name in names) / 1e9
    dtypes = Counter(str(tensors.dtype(name)).removeprefix("torch.") for name in names)
    types = ", ".join(f"{count} {dtype}" for dtype, count in dtypes.items())
    return f"{parameters:,} parameters in {len(names)} tensors, {files} file(s), {gigabytes:.3g} GB, {types}"


def _largest(tensors: HFReader | DistributedView) -> str:
    largest = max(tensors.names(), key=lambda name: math.prod(tensors.shape(name)))
    return f"largest tensor {largest} {list(tensors.shape(largest))}"


def _check_manifest(path: Path, checksums: bool) -> None:
    if not (path / MANIFEST).is_file():
        if checksums:
            raise CheckpointError(f"{path}: no {MANIFEST}, so no checksums to compare with")
        return
    if problems := check(path, sizes_only=not checksums):
        raise CheckpointError("\n".join(f"{path}: {problem}" for problem in problems))


def _check_sums(hf_dir: Path) -> None:
    sums = hf_dir / SUMS_FILE
    if not sums.is_file():
        raise CheckpointError(f"{hf_dir}: no {SUMS_FILE}, so no checksums to compare with")
    lines = [line.split("  ", 1) for line in sums.read_text(encoding="utf-8").splitlines()]
    if wrong := [name for digest, name in lines if fingerprint(hf_dir / name)["sha256"] != digest]:
        raise CheckpointError("\n".join(f"{hf_dir / name}: has other content than was written (checksum)" for name in wrong))
