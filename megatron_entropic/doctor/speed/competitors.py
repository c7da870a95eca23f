"""Other projects' log-probs and entropies, each called the way its own trainer calls it, with tensor-parallel size 1.

Written against verl 0.9.1, liger-kernel 0.8.5 and megatron-core 0.16.1; nothing of them is imported before a case runs.
Every function here takes a KernelProblem and gives [log-prob] or [log-prob, entropy], each [T], differentiable.

Shapes: T tokens, H hidden size, V vocabulary.
"""

import atexit
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_entropic.doctor.speed.problem import KernelProblem

CHUNKS = 4
"""Chunks of the cases in chunks: verl's default of 2048 tokens would be a single one here."""


@cache
def start_one_rank(backend: str) -> None:
    """A process group of this process alone and Megatron's groups in it, ended with the process; no network is used."""
    from megatron.core import parallel_state

    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    atexit.register(dist.destroy_process_group)
    parallel_state.initialize_model_parallel()


def _on_one_rank(problem: KernelProblem) -> None:
    start_one_rank("nccl" if problem.targets_T.is_cuda else "gloo")


def verl_megatron(problem: KernelProblem) -> list[Tensor]:
    """verl's Megatron engine: the entropy of the logits, the log-prob of a copy, which its cross entropy overwrites."""
    from verl.utils.megatron.tensor_parallel import vocab_parallel_entropy, vocab_parallel_log_probs_from_logits

    _on_one_rank(problem)
    copy_TV = problem.logits.clone()
    entropy_T = vocab_parallel_entropy(problem.logits)
    return [vocab_parallel_log_probs_from_logits(copy_TV, problem.targets_T), entropy_T]


def verl_megatron_chunked(problem: KernelProblem) -> list[Tensor]:
    """The same with `entropy_from_logits_with_chunking`, which wants a batch dimension."""
    from verl.utils.megatron.tensor_parallel import vocab_parallel_entropy_with_chunking, vocab_parallel_log_probs_from_logits

    _on_one_rank(problem)
    logits_1TV = problem.logits[None]
    copy_1TV = logits_1TV.clone()
    entropy_1T = vocab_parallel_entropy_with_chunking(logits_1TV, chunk_size=_chunk(problem))
    return [vocab_parallel_log_probs_from_logits(copy_1TV, problem.targets_T[None])[0], entropy_1T[0]]


def verl_fsdp(problem: KernelProblem) -> list[Tensor]:
    """verl's FSDP engine with its defaults: the entropy compiled, the log-prob not overwriting the logits beside it."""
    from verl.utils.torch_functional import entropy_from_logits

    return [_verl_fsdp_log_prob(problem), _compiled(entropy_from_logits)(problem.logits)]


def verl_fsdp_chunked(problem: KernelProblem) -> list[Tensor]:
    """The same with `entropy_from_logits_with_chunking`."""
    from verl.utils.torch_functional import entropy_from_logits_with_chunking

    entropy_T = _compiled(entropy_from_logits_with_chunking)(problem.logits, chunk_size=_chunk(problem))
    return [_verl_fsdp_log_prob(problem), entropy_T]


def _verl_fsdp_log_prob(problem: KernelProblem) -> Tensor:
    from verl.utils.torch_functional import logprobs_from_logits

    log_prob_T: Tensor = logprobs_from_logits(logits=problem.logits, labels=problem.targets_T, inplace_backward=False)
    return log_prob_T


@cache
def _compiled(function: Any) -> Any:
    return torch.compile(function, dynamic=True)


def _chunk(problem: KernelProblem) -> int:
    return max(1, len(problem.targets_T) // CHUNKS)


def verl_linear(problem: KernelProblem) -> list[Tensor]:
    """verl's fused output layer of the torch backend: chunks of 512 tokens, logits computed again in backward."""
    from verl.utils.experimental.torch_functional import FusedLinearForPPO

    return list(FusedLinearForPPO()(problem.hidden, problem.weight, problem.targets_T, temperature=1.0))


def verl_linear_triton(problem: KernelProblem) -> list[Tensor]:
    """verl's fused output layer of the triton backend, without a tensor-parallel group."""
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    return list(linear_cross_entropy(problem.hidden, problem.weight, problem.targets_T, 1.0, "none", None))


def megatron_log_prob(problem: KernelProblem) -> list[Tensor]:
    """Megatron-Core's cross entropy; float32 logits it overwrites, hence the copy."""
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    _on_one_rank(problem)
    logits_TV = problem.logits
    return [-vocab_parallel_cross_entropy(logits_TV.clone() if logits_TV.dtype == torch.float32 else logits_TV, problem.targets_T)]


def liger_log_prob(problem: KernelProblem) -> list[Tensor]:
    """Liger's cross entropy; it leaves the gradient in its input, hence the copy."""
    from liger_kernel.transformers.functional import liger_cross_entropy

    return [-liger_cross_entropy(problem.logits.clone(), problem.targets_T, reduction="none")]


def liger_vocab_parallel(problem: KernelProblem) -> list[Tensor]:
    """Liger's replacement of Megatron's cross entropy, [sequence, batch, V] without a group."""
    from liger_kernel.transformers.vocab_parallel_cross_entropy import LigerVocabParallelCrossEntropy

    return [-LigerVocabParallelCrossEntropy()(problem.logits[:, None], problem.targets_T[:, None])[:, 0]]


def liger_linear(problem: KernelProblem) -> list[Tensor]:
    """Liger's fused output layer with entropy: its Hopper kernel where there is one, else its torch code in chunks of 512."""
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    nll_T, entropy_T = LigerFusedLinearScaledCrossEntropyFunction.apply(
        problem.hidden, problem.weight, problem.targets_T, return_entropy=True
    )
    return [-nll_T, entropy_T]
