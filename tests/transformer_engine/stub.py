"""Transformer Engine's own Python on a machine without a GPU: its compiled extension is a stub, its products are plain torch.

Megatron-Core's wrappers and the layers' constructors, parameters and states are the real ones; only the functions that would
launch CUDA kernels are replaced, by what they are to compute. `install` comes before the first import of Megatron-Core.

Shapes: T packed tokens, H features in, F features out, Q query and G key/value heads, D head size.
"""

import enum
import importlib
import itertools
import math
import os
import re
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PACKAGE = "transformer_engine"
EXTENSION = "transformer_engine_torch"


def install(folder: Path) -> None:
    """Makes `import transformer_engine` find the package in `folder`, and Megatron-Core take it for complete."""
    sys.path.append(str(folder))
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # leaves the CUDA libraries unloaded
    sys.modules[EXTENSION] = _Extension(folder / PACKAGE)
    importlib.import_module(f"{PACKAGE}.common").load_framework_extension = lambda _: None
    importlib.import_module(PACKAGE).__version__ = importlib.import_module("importlib.metadata").version(PACKAGE)
    te = importlib.import_module(f"{PACKAGE}.pytorch")
    te.Linear.forward = _linear
    te.LayerNormLinear.forward = _norm_linear
    te.GroupedLinear.forward = _grouped_linear
    te.RMSNorm.forward = lambda self, x: _rms(x, self.weight, self.eps)
    te.DotProductAttention.forward = _attention
    importlib.import_module(f"{PACKAGE}.pytorch.optimizers").FusedAdam.step = _adam_step


class _Extension(types.ModuleType):
    """Stands in for the compiled module: enumerations have the names that the package's Python uses, functions raise."""

    def __init__(self, package: Path) -> None:
        super().__init__(EXTENSION)
        text = (package / "pytorch" / "constants.py").read_text()
        self.DType = enum.IntEnum(
            "DType", {name: index for index, name in enumerate(re.findall(r"^    (k\w+) = int", text, re.MULTILINE))}
        )
        products = [f"GEMM{number}_{part}" for number in (1, 2, 3) for part in ("INPUT", "WEIGHT", "OUTPUT")]
        gradients = [f"GRAD_{part}{number}" for number in (1, 2, 3) for part in ("OUTPUT", "INPUT")]
        self.FP8FwdTensors = enum.IntEnum("FP8FwdTensors", products, start=0)
        self.FP8BwdTensors = enum.IntEnum("FP8BwdTensors", gradients, start=0)
        text = (package / "pytorch" / "cpp_extensions" / "fused_attn.py").read_text()
        backends = dict.fromkeys(re.findall(r"NVTE_Fused_Attn_Backend\.(NVTE_\w+)", text))
        self.NVTE_Fused_Attn_Backend = enum.IntEnum("NVTE_Fused_Attn_Backend", {name: index for index, name in enumerate(backends)})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value: Any = _AnyName(name, (), {}) if name[0].isupper() else _kernel(name)
        setattr(self, name, value)
        return value


class _AnyName(type):
    """A class of the extension that has every attribute it is asked for, each a number of its own."""

    def __getattr__(cls, name: str) -> int:
        if name.startswith("__"):
            raise AttributeError(name)
        return sum(ord(letter) * 31**place for place, letter in enumerate(name)) % 2**31


def _kernel(name: str) -> Any:
    def call(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"{EXTENSION}.{name} needs a GPU")

    return call


def _rms(x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x_TH.float(), (x_TH.shape[-1],), weight_H.float(), eps).to(x_TH.dtype)


def _linear(self: Any, inp: Tensor, is_first_microbatch: bool | None = None, **_: Any) -> Any:
    """Over several tensor ranks with the layer's own collectives, by Megatron-Core's functions for them."""
    from megatron.core.tensor_parallel import mappings

    if self.tp_size > 1 and self.parallel_mode == "column":
        gather = mappings.gather_from_sequence_parallel_region
        inp = gather(inp) if self.sequence_parallel else mappings.copy_to_tensor_model_parallel_region(inp)
    out = F.linear(inp, self.weight, self.bias if self.use_bias else None)
    if self.tp_size > 1 and self.parallel_mode == "row":
        scatter = mappings.reduce_scatter_to_sequence_parallel_region
        out = scatter(out) if self.sequence_parallel else mappings.reduce_from_tensor_model_parallel_region(out)
    return (out, self.bias) if self.return_bias else out


def _norm_linear(self: Any, inp: Tensor, is_first_microbatch: bool | None = None, **_: Any) -> Any:
    return _linear(self, _rms(inp, self.layer_norm_weight, self.eps))


def _grouped_linear(self: Any, inp: Tensor, m_splits: Sequence[int], is_first_microbatch: bool | None = None) -> Any:
    parts = torch.split(inp, list(m_splits))
    weights = [getattr(self, f"weight{index}") for index in range(self.num_gemms)]
    return torch.cat([F.linear(part, weight) for part, weight in zip(parts, weights, strict=True)])


def _attention(self: Any, q_TQD: Tensor, k_TGD: Tensor, v_TGD: Tensor, attention_mask: Tensor | None = None, **settings: Any) -> Tensor:
    """Causal within each packed sequence. [T, Q*D]."""
    assert attention_mask is None
    assert (settings["qkv_format"], settings["attn_mask_type"]) == ("thd", "padding_causal")
    outputs = []
    for start, stop in itertools.pairwise(settings["cu_seqlens_q"].tolist()):
        q, k, v = (x[start:stop].transpose(0, 1)[None] for x in (q_TQD, k_TGD, v_TGD))
        outputs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(outputs).reshape(q_TQD.shape[0], -1)


def rotate(t_TQD: Tensor, freqs: Tensor, **settings: Any) -> Tensor:
    """Rotary positions that begin anew in each packed sequence, the halves of a head turned against each other."""
    outputs = []
    for start, stop in itertools.pairwise(settings["cu_seqlens"].tolist()):
        angle = freqs[: stop - start, :, 0, :]
        x = t_TQD[start:stop].float()
        low, high = x.chunk(2, -1)
        outputs.append((x * angle.cos() + torch.cat((-high, low), -1) * angle.sin()).to(t_TQD.dtype))
    return torch.cat(outputs)


def _adam_step(self: Any, *_: Any, **__: Any) -> None:
    """FusedAdam: AdamW in float32 that counts its updates per group. A parameter gets its state with its first gradient."""
    for group in self.param_groups:
        group["step"] = group.get("step", 0) + 1
        beta1, beta2 = group["betas"]
        corrections = 1 - beta1 ** group["step"], 1 - beta2 ** group["step"]
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state.update(exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
            state["exp_avg"].lerp_(parameter.grad, 1 - beta1)
            state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
            denominator = (state["exp_avg_sq"].sqrt() / math.sqrt(corrections[1])).add_(group["eps"])
            with torch.no_grad():
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.addcdiv_(state["exp_avg"], denominator, value=-group["lr"] / corrections[0])
