"""Megatron's gradient accumulation: chunks go straight to weight.main_grad, and its hook is told."""

import pytest
import torch
from torch import Tensor

from megatron_entropic.entropy import linear_token_log_probs, linear_token_statistics
from megatron_entropic.entropy.gradient_accumulation import added_to_main_grad
from megatron_entropic.system import logits_tiles
from tests.entropy.oracle import assert_close, gradient_rounding

TOKENS, HIDDEN, VOCAB, PADDED = 10, 6, 21, 24


def wrapped_parameter(weight: Tensor) -> torch.nn.Parameter:
    """A parameter as Megatron's DistributedDataParallel leaves it, with something in its buffer already."""
    parameter = torch.nn.Parameter(weight.clone())
    parameter.main_grad = torch.ones(weight.shape)  # type: ignore[attr-defined]
    parameter.grad_added_to_main_grad = False  # type: ignore[attr-defined]
    return parameter


def hook(parameter: torch.nn.Parameter) -> None:
    """Megatron's backward hook, applied to the gradient from autograd."""
    assert parameter.grad is not None
    if not parameter.grad_added_to_main_grad or getattr(parameter, "zero_out_wgrad", False):  # type: ignore[attr-defined]
        parameter.main_grad.add_(parameter.grad)  # type: ignore[attr-defined]
    parameter.grad = None


def run(hidden: Tensor, weight: Tensor, clamp: float | None, fused: bool, chunk_tokens: int | None = None) -> Tensor:
    targets = torch.arange(TOKENS) % VOCAB
    statistics = linear_token_statistics(
        hidden, weight, targets, vocab_size=VOCAB, clamp=clamp, chunk_tokens=chunk_tokens, accumulate_main_grad=fused
    )
    return sum(x.sum() for x in statistics if x is not None)  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("clamp", "chunk_tokens"), [(None, None), (None, 3), (0.4, 3)])
def test_adds_to_the_buffer(dtype: torch.dtype, clamp: float | None, chunk_tokens: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits_tiles, "MIN_COLUMNS", 4)
    monkeypatch.setattr(logits_tiles, "MIN_ELEMENTS", 1)
    monkeypatch.setattr(logits_tiles, "ALIGNMENT", 1)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype)
    weight = torch.randn(PADDED, HIDDEN, generator=generator).to(dtype)
    plain, parameter = weight.clone().requires_grad_(), wrapped_parameter(weight)
    run(hidden, plain, clamp, False, chunk_tokens).backward()
    for _ in range(2):
        parameter.grad_added_to_main_grad = False  # type: ignore[attr-defined]
        run(hidden, parameter, clamp, True, chunk_tokens).backward()
        assert parameter.grad_added_to_main_grad  # type: ignore[attr-defined]
        hook(parameter)
    assert plain.grad is not None
    rounding = 2 * gradient_rounding(dtype)
    assert_close(parameter.main_grad, 1 + 2 * plain.grad.double(), 2e-5 + rounding, rounding)  # type: ignore[arg-type]
    assert (parameter.main_grad[VOCAB:] == 1).all()  # type: ignore[index]


def test_a_tied_embedding_adds_its_own_gradient() -> None:
    table = torch.randn(PADDED, HIDDEN, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(TOKENS) % 5
    plain, parameter = table.clone().requires_grad_(), wrapped_parameter(table)
    parameter.zero_out_wgrad = True  # type: ignore[attr-defined]  # as Megatron marks shared embeddings
    run(plain[ids].tanh(), plain, None, False).backward()
    run(parameter[ids].tanh(), parameter, None, True).backward()
    hook(parameter)
    assert plain.grad is not None
    assert_close(parameter.main_grad, 1 + plain.grad, 2e-5)  # type: ignore[arg-type]


def test_a_weight_without_a_buffer_is_refused() -> None:
    hidden, weight = torch.randn(TOKENS, HIDDEN), torch.randn(PADDED, HIDDEN, requires_grad=True)
    with pytest.raises(ValueError, match=r"weight \(24, 6\) has no main_grad"):
        run(hidden, weight, None, True)
    with torch.no_grad():
        run(hidden, weight, None, True)
    log_probs = linear_token_log_probs(
        hidden.requires_grad_(), weight.detach(), torch.zeros(TOKENS, dtype=torch.int64), vocab_size=VOCAB, accumulate_main_grad=True
    )
    log_probs.sum().backward()
    assert hidden.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_what_autograd_is_given_takes_no_memory(dtype: torch.dtype, tied: bool) -> None:
    """Nothing of the weight's size is allocated: the placeholder is one zero, or lies in main_grad, and reaches the hook as it is."""
    parameter = torch.nn.Parameter(torch.randn(4096, 64, generator=torch.Generator().manual_seed(0)).to(dtype))
    parameter.main_grad, parameter.grad_added_to_main_grad = torch.ones(4096, 64), False  # type: ignore[attr-defined]
    parameter.zero_out_wgrad = tied  # type: ignore[attr-defined]
    placeholder = added_to_main_grad(parameter)
    assert (placeholder.shape, placeholder.dtype, placeholder.device) == (parameter.shape, dtype, parameter.device)
    if tied:
        assert placeholder.untyped_storage().nbytes() == dtype.itemsize
        assert (placeholder == 0).all()
        return
    hidden = torch.zeros(1, 64, dtype=dtype, requires_grad=True)
    seen: list[int] = []
    parameter.register_post_accumulate_grad_hook(lambda weight: seen.append(weight.grad.data_ptr()))  # type: ignore[union-attr]
    linear_token_log_probs(
        hidden, parameter, torch.zeros(1, dtype=torch.int64), vocab_size=4096, accumulate_main_grad=True
    ).sum().backward()
    assert seen == [placeholder.data_ptr()] == [parameter.main_grad.data_ptr()]  # type: ignore[attr-defined]
    assert (parameter.main_grad == 1).all()  # type: ignore[attr-defined]


def test_a_gradient_that_no_hook_took_away_is_refused() -> None:
    parameter = wrapped_parameter(torch.randn(PADDED, HIDDEN))
    run(torch.randn(TOKENS, HIDDEN), parameter, None, True).backward()
    with pytest.raises(RuntimeError, match=r"weight \(24, 6\) has a .grad already"):
        run(torch.randn(TOKENS, HIDDEN), parameter, None, True).backward()
