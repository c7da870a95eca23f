"""Memory that the operations allocate: a few cache-sized blocks and the gradients they return, never a copy of the logits."""

import pytest
import torch
from torch import Tensor

from megatron_entropic.entropy import (
    linear_token_log_probs,
    linear_token_statistics,
    shard,
    token_log_probs,
    token_statistics,
)
from tests.entropy.memory import peak_allocated

TOKENS, VOCAB = 64, 152_064
BLOCKS = 5 * shard.BLOCK_BYTES * torch.get_num_threads()  # four buffers a thread, and some bits
SCALARS = 64 * 1024


def test_the_measure_itself() -> None:
    def step() -> Tensor:
        torch.empty(1_000_000)
        return torch.empty(500_000).add_(1)

    assert 4_000_000 <= peak_allocated(step) <= 4_001_000
    assert peak_allocated(lambda: torch.empty(1_000_000).exp()) >= 8_000_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clamp", [None, 0.4])
def test_logits_are_never_copied(dtype: torch.dtype, clamp: float | None) -> None:
    logits_TV = torch.randn(TOKENS, VOCAB).to(dtype).requires_grad_()
    targets_T = torch.zeros(TOKENS, dtype=torch.int64)
    held: list[Tensor] = []

    def forward() -> None:
        statistics = token_statistics(logits_TV, targets_T, vocab_size=VOCAB, clamp=clamp)
        held.append(sum(x.sum() for x in statistics if x is not None))  # type: ignore[arg-type]

    logits_bytes = logits_TV.numel() * logits_TV.element_size()
    assert peak_allocated(forward) <= BLOCKS + SCALARS
    assert logits_bytes <= peak_allocated(lambda: torch.autograd.backward(held.pop())) <= logits_bytes + BLOCKS + SCALARS


def test_at_most_two_fifths_of_plain_autograd() -> None:
    logits_TV = torch.randn(TOKENS, VOCAB, requires_grad=True)
    targets_T = torch.zeros(TOKENS, dtype=torch.int64)

    def plain() -> None:
        log_p_TV = logits_TV.log_softmax(1)
        torch.autograd.backward(log_p_TV.gather(1, targets_T[:, None]).sum() - (log_p_TV.exp() * log_p_TV).sum())

    def ours() -> None:
        statistics = token_statistics(logits_TV, targets_T, vocab_size=VOCAB)
        torch.autograd.backward(statistics.log_prob.sum() + statistics.entropy.sum())

    peaks = []
    for step in (plain, ours):
        logits_TV.grad = None
        peaks.append(peak_allocated(step))
    assert peaks[1] <= 0.4 * peaks[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_layer_takes_a_twentieth_of_the_logits(dtype: torch.dtype) -> None:
    tokens, hidden_size = 512, 16
    hidden = torch.randn(tokens, hidden_size).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, hidden_size).to(dtype).requires_grad_()
    targets_T = torch.zeros(tokens, dtype=torch.int64)

    def step() -> None:
        statistics = linear_token_statistics(hidden, weight, targets_T, vocab_size=VOCAB)
        torch.autograd.backward(statistics.log_prob.sum() + statistics.entropy.sum())

    gradients = (hidden.numel() + weight.numel()) * hidden.element_size()
    assert peak_allocated(step) - gradients <= 0.05 * tokens * VOCAB * hidden.element_size()


@pytest.mark.parametrize("needs_grad", [False, True])
def test_log_probs_alone_are_the_same_bits(needs_grad: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_TV = (torch.randn(6, 300, generator=generator) * 5).requires_grad_(needs_grad)
    hidden, weight = torch.randn(6, 8, generator=generator), torch.randn(300, 8, generator=generator)
    targets_T = torch.randint(290, (6,), generator=generator)
    options = {"vocab_size": 290, "temperature": 0.7, "mask": torch.arange(6) != 2}
    alone = token_log_probs(logits_TV, targets_T, **options)  # type: ignore[arg-type]
    statistics = token_statistics(logits_TV, targets_T, **options)  # type: ignore[arg-type]
    assert torch.equal(alone, statistics.log_prob)
    if needs_grad:
        grads = [torch.autograd.grad(x.sum(), logits_TV)[0] for x in (alone, statistics.log_prob)]
        assert torch.equal(*grads)
        weight.requires_grad_()
    fused = linear_token_log_probs(hidden, weight, targets_T, **options)  # type: ignore[arg-type]
    assert torch.equal(fused, linear_token_statistics(hidden, weight, targets_T, **options).log_prob)  # type: ignore[arg-type]
    assert fused.requires_grad == needs_grad
