"""Whether a checkpoint means the same to Megatron-Core and to transformers: logits of a few prompts, in float32.

Shapes: T tokens of a prompt, V vocabulary.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_entropic.checkpoint_files.kind import Located
from megatron_entropic.conversion.exporting import ExportOptions, export_hf
from megatron_entropic.hf.headers import CheckpointError

if TYPE_CHECKING:
    from megatron_entropic.policy.model import PolicyModel

PROMPTS = (
    "What is 17 * 23? Think step by step.",
    "def fibonacci(n):\n    ",
    "Entropy is",
)


@dataclass(frozen=True)
class Parity:
    """The largest |difference| of any logit, relative to the largest |logit|."""

    prompts: int
    tokens: int
    largest: float
    tolerance: float

    @property
    def within(self) -> bool:
        return self.largest <= self.tolerance

    def __str__(self) -> str:
        verdict = "within" if self.within else "beyond"
        return (
            f"logits of {self.prompts} prompts ({self.tokens} tokens), Megatron-Core against transformers: largest difference "
            f"{self.largest:.2e} of the largest logit, {verdict} the tolerance of {self.tolerance:g}"
        )


def compare_logits(a: Located, b: Located, prompts: Sequence[str] | None, tolerance: float) -> Parity:
    """A's logits by Megatron-Core against B's by transformers. Both models are in memory, one after the other.

    Raises CheckpointError when a checkpoint brings no config.json and tokenizer.
    """
    from transformers import AutoTokenizer  # seconds that the other commands need not pay

    hf_dir = b.companions or a.companions
    if hf_dir is None:
        raise CheckpointError(f"{b.path}: brings no config.json and tokenizer, and neither does {a.path}")
    tokenizer = AutoTokenizer.from_pretrained(hf_dir, local_files_only=True)
    encoded = [tokenizer(text, add_special_tokens=True)["input_ids"] for text in prompts or PROMPTS]
    tokens = [ids if ids else [0] for ids in encoded]
    ours, theirs = _megatron_logits(a, hf_dir, tokens), _transformers_logits(b, hf_dir, tokens)
    largest = max(((x - y).abs().max() / y.abs().max()).item() for x, y in zip(ours, theirs, strict=True))
    return Parity(len(tokens), sum(len(ids) for ids in tokens), largest, tolerance)


def _megatron_logits(located: Located, hf_dir: Path, prompts: Sequence[list[int]]) -> list[Tensor]:
    """[T, V] float32 of every prompt, by the model that training uses, on one process."""
    from megatron_entropic.config import Config, ModelConfig, ParallelConfig
    from megatron_entropic.distributed.parallel import initialize_parallel, shutdown
    from megatron_entropic.hf.architectures import Architecture
    from megatron_entropic.policy.initial_weights import load_start_weights
    from megatron_entropic.policy.model import build_model

    parallel = initialize_parallel(ParallelConfig(), seed=0)
    try:
        model = build_model(Architecture.from_hf(hf_dir), Config(model=ModelConfig(dtype="float32")), parallel)
        load_start_weights(model, located.path if located.weights is None else located.weights, parallel)
        return [_logits(model, torch.tensor(prompt)) for prompt in prompts]
    finally:
        shutdown()


@torch.no_grad()
def _logits(model: "PolicyModel", tokens_T: Tensor) -> Tensor:
    from megatron.core.packed_seq_params import PackedSeqParams

    length = len(tokens_T)
    bounds = torch.tensor([0, length], dtype=torch.int32)
    packing = PackedSeqParams("thd", bounds, bounds, max_seqlen_q=length, max_seqlen_kv=length)
    hidden_T1H = model(tokens_T[None], torch.arange(length)[None], None, packed_seq_params=packing)
    logits_TV: Tensor = hidden_T1H[:, 0].float() @ model.lm_head_weight().float().T
    return logits_TV[:, : model.arch.vocab_size]


def _transformers_logits(located: Located, hf_dir: Path, prompts: Sequence[list[int]]) -> list[Tensor]:
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        source = located.path
        if located.weights is not None:  # transformers reads its own format only
            source = Path(folder) / "hf"
            export_hf(located.weights, hf_dir, source, ExportOptions(dtype="float32"))
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, local_files_only=True, use_safetensors=True).eval()
    with torch.no_grad():
        return [model(torch.tensor(prompt)[None]).logits[0] for prompt in prompts]
