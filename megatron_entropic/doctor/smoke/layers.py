"""Part `layers`: hidden states and log-probs of the same weights by Transformer Engine's layers, the local ones, and transformers.

Shapes: T packed tokens, H hidden size, V vocabulary.
"""

import gc
import itertools
import tempfile
import traceback
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_entropic.config import Config, ModelConfig, ParallelConfig
from megatron_entropic.distributed.parallel import Parallel, initialize_parallel
from megatron_entropic.doctor.smoke.findings import Findings
from megatron_entropic.doctor.smoke.machine_size import MachineSize, machine_size, save_random_model
from megatron_entropic.entropy import linear_token_statistics
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.policy.model import build_model
from megatron_entropic.policy.weights import load_hf_weights

LayerSpec = Literal["local", "transformer_engine"]
DTypeName = Literal["float32", "bfloat16"]
_FLOAT32_LOG_PROB = 1e-3
"""Difference of two float32 log-probs of one token, nats: the rounding of 28 layers stays far below."""
_AGAINST_TRANSFORMERS = 1.5
"""How much farther from float32 than transformers' own bfloat16 another bfloat16 may be, in the mean."""


@dataclass(frozen=True)
class PackedPass:
    """The last hidden states and the log-probs of each next token, float32 on the host."""

    hidden_TH: Tensor
    log_prob_T: Tensor

    def distance(self, other: "PackedPass") -> dict[str, float]:
        """Differences of hidden states, as a fraction of their root mean square, and of log-probs in nats."""
        hidden_TH = (self.hidden_TH - other.hidden_TH).abs() / other.hidden_TH.square().mean().sqrt()
        log_prob_T = (self.log_prob_T - other.log_prob_T).abs()
        return {
            "hidden_mean": float(hidden_TH.mean()),
            "hidden_max": float(hidden_TH.max()),
            "log_prob_mean": float(log_prob_T.mean()),
            "log_prob_max": float(log_prob_T.max()),
        }


def run(findings: Findings) -> None:
    """Everything is compared with transformers in float32; its own bfloat16 says how much rounding makes."""
    size = machine_size()
    lengths = (3, 700, 17, 1, 1300, 63, 300) if size.device.type == "cuda" else (3, 90, 17, 1, 63)
    sequences = [
        torch.randint(2, size.shape["vocab_size"], (length,), generator=torch.Generator().manual_seed(3)) for length in lengths
    ]
    findings.step(f"making a model: {size.model_text}")
    folder = save_random_model(Path(tempfile.mkdtemp()), size)
    findings.step("transformers")
    exact = transformers_pass(folder, "float32", sequences, size.device)
    rounded = transformers_pass(folder, "bfloat16", sequences, size.device).distance(exact)
    findings.found("transformers, bfloat16", **rounded)
    parallel = initialize_parallel(ParallelConfig(), seed=1)
    for spec in _specs(findings, size):
        for dtype in ("float32", "bfloat16"):
            findings.step(f"{spec} layers, {dtype}")
            try:
                distance = megatron_pass(folder, spec, dtype, sequences, parallel).distance(exact)
            except Exception as error:  # noqa: BLE001 - the other layers are still tried
                _not_computed(findings, f"{spec} layers, {dtype}", error)
                continue
            findings.found(f"{spec} layers, {dtype}", **distance)
            _judge(findings, spec, dtype, distance, rounded)


def _specs(findings: Findings, size: MachineSize) -> tuple[LayerSpec, ...]:
    if size.device.type != "cuda":
        findings.cannot("Transformer Engine's layers", "they need a GPU")
    elif find_spec("transformer_engine") is None:
        findings.cannot("Transformer Engine's layers", "transformer-engine is not installed")
    else:
        return "local", "transformer_engine"
    return ("local",)


def _not_computed(findings: Findings, what: str, error: Exception) -> None:
    """A failure, but for what Transformer Engine says where none of its kernels attends to packed sequences in this type."""
    reason = (str(error).strip().splitlines() or [""])[0]
    if "attention backend" in reason:
        findings.cannot(what, reason)
    else:
        traceback.print_exception(error)
        findings.expect(False, f"{what}: {type(error).__name__}: {reason}")


def _judge(findings: Findings, spec: LayerSpec, dtype: DTypeName, distance: dict[str, float], rounded: dict[str, float]) -> None:
    if dtype == "float32" and spec == "local":
        findings.at_most(
            f"{spec} layers, {dtype}: log-probs against transformers, at most", distance["log_prob_max"], _FLOAT32_LOG_PROB
        )
        return
    # Transformer Engine multiplies float32 in TF32, whose rounding is between that of the two types.
    for kind in ("hidden_mean", "log_prob_mean"):
        what = f"{spec} layers, {dtype}: {kind.replace('_', ' ')} against transformers in float32"
        findings.at_most(what, distance[kind], _AGAINST_TRANSFORMERS * rounded[kind])


@torch.no_grad()
def transformers_pass(folder: Path, dtype: DTypeName, sequences: list[Tensor], device: torch.device) -> PackedPass:
    """Each sequence by itself, in transformers."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
    hidden, log_probs = [], []
    for ids_T in sequences:
        hidden_TH = model.model(ids_T.to(device)[None]).last_hidden_state[0]
        hidden.append(hidden_TH.float().cpu())
        log_probs.append(_log_probs(hidden_TH, model.lm_head.weight, ids_T))
    del model
    _free()
    return PackedPass(torch.cat(hidden), torch.cat(log_probs))


@torch.no_grad()
def megatron_pass(folder: Path, spec: LayerSpec, dtype: DTypeName, sequences: list[Tensor], parallel: Parallel) -> PackedPass:
    """All sequences packed, by Megatron-Core's model with layers of this kind."""
    arch = Architecture.from_hf(folder)
    cfg = Config(model=ModelConfig(hf_path=folder, dtype=dtype, layer_spec=spec), parallel=ParallelConfig())
    model = build_model(arch, cfg, parallel).eval()
    load_hf_weights(model, folder, parallel)
    device = parallel.device
    borders = [0, *itertools.accumulate(map(len, sequences))]
    cu_seqlens = torch.tensor(borders, dtype=torch.int32, device=device)
    longest = max(map(len, sequences))
    packed = PackedSeqParams("thd", cu_seqlens, cu_seqlens, max_seqlen_q=longest, max_seqlen_kv=longest)
    positions_1T = torch.cat([torch.arange(len(ids_T)) for ids_T in sequences])[None].to(device)
    hidden_TH = model(torch.cat(sequences)[None].to(device), positions_1T, None, packed_seq_params=packed)[:, 0]
    head_VH = model.lm_head_weight()[: arch.vocab_size]
    parts = [_log_probs(hidden_TH[start:stop], head_VH, ids_T) for (start, stop), ids_T in zip(_pairs(borders), sequences, strict=True)]
    found = PackedPass(hidden_TH.float().cpu(), torch.cat(parts))
    del model, hidden_TH, head_VH
    _free()
    return found


def _pairs(borders: list[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(borders))


def _log_probs(hidden_TH: Tensor, head_VH: Tensor, ids_T: Tensor) -> Tensor:
    """Those of each next token of one sequence, by the project's own output layer, which `kernels` has compared with float64."""
    if len(ids_T) < 2:
        return torch.empty(0)
    statistics = linear_token_statistics(hidden_TH[:-1], head_VH, ids_T[1:].to(hidden_TH.device), vocab_size=len(head_VH))
    return statistics.log_prob.float().cpu()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
