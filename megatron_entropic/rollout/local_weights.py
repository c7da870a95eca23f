"""Copies a stream of checkpoint tensors into a transformers model in memory, in place, and reports everything that does not fit.

transformers keeps the experts of a layer as two tensors in memory, [E, 2F, H] gate above up and [E, H, F] down, and names them
for itself; a checkpoint has three matrices for each expert. Shapes: E experts, F inner size of an expert, H hidden size.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from megatron_entropic.hf.architectures import FAMILIES, MoENames

_GATE_UP, _DOWN, _ROUTER = "mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"


@torch.no_grad()
def copy_weights(model: Any, weights: Iterator[tuple[str, Tensor]]) -> list[str]:
    """Copies the stream into the model's tensors and returns what was wrong with it, a line for each name."""
    tensors = checkpoint_tensors(model)
    problems: list[str] = []
    filled: dict[int, str] = {}
    names: set[str] = set()
    for name, weight in weights:
        if name not in tensors:
            problems.append(f"{name}: the model has no such weight")
        elif name in names:
            problems.append(f"{name}: came twice")
        elif weight.shape != tensors[name].shape:
            problems.append(f"{name}: shape {tuple(weight.shape)}, the model's is {tuple(tensors[name].shape)}")
        elif (tied := filled.get(tensors[name].data_ptr())) is not None and not torch.equal(tensors[name], weight.to(tensors[name])):
            problems.append(f"{name}: differs from {tied}, which it is tied to")
        else:
            tensors[name].copy_(weight)
            filled[tensors[name].data_ptr()] = name
        names.add(name)
    # A tied weight is one tensor under two names: it is there when either name came.
    came = {tensors[name].data_ptr() for name in names if name in tensors}
    problems += [f"{name}: missing" for name, tensor in tensors.items() if tensor.data_ptr() not in came]
    return problems


def checkpoint_tensors(model: Any) -> Mapping[str, Tensor]:
    """The model's own tensors (views: writing to them changes the model) under the names a checkpoint has for them."""
    tensors: dict[str, Tensor] = {}
    family = FAMILIES.get(type(model).__name__)
    for name, tensor in model.state_dict().items():
        parts = _moe_parts(name, tensor, family.moe_names) if family and family.moe_names else None
        tensors.update(parts or {name: tensor})
    return tensors


def _moe_parts(name: str, tensor: Tensor, names: MoENames) -> dict[str, Tensor] | None:
    """The checkpoint's tensors for one tensor of an MoE block; None when it is no such tensor, or named as there."""
    if name.endswith(_ROUTER):
        return {f"{name.removesuffix(_ROUTER)}{names.block}.gate.weight": tensor}
    if name.endswith(_DOWN):
        experts = f"{name.removesuffix(_DOWN)}{names.block}.experts"
        return {f"{experts}.{e}.{names.down}.weight": down for e, down in enumerate(tensor)}
    if not name.endswith(_GATE_UP):
        return None
    experts = f"{name.removesuffix(_GATE_UP)}{names.block}.experts"
    halves = {names.gate: tensor.chunk(2, 1)[0], names.up: tensor.chunk(2, 1)[1]}
    return {f"{experts}.{e}.{part}.weight": half[e] for e in range(len(tensor)) for part, half in halves.items()}
