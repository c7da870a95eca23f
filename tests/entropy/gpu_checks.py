"""token_statistics and the output layer on a GPU at the sizes of real vocabularies; and two tensor ranks that share it over gloo.

    python -m tests.entropy.gpu_checks          needs PyTorch and Triton alone, and one GPU with 24 GB free

Prints each check's name, its largest errors and time; all are run, and the exit code is 1 when any failed.

Shapes: T rows, V vocabulary columns, C columns with padding, H hidden size.
"""

import multiprocessing
import os
import socket
import sys
import traceback
from datetime import timedelta
from functools import partial
from queue import Empty
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_entropic.entropy import TokenStatistics, linear_token_statistics, token_statistics
from megatron_entropic.entropy.device_path import memory_of_gpu
from megatron_entropic.system.logits_tiles import LogitsShape, tile_shape
from tests.entropy import kernel_checks
from tests.entropy.oracle import NAMES, gradient_rounding

ROWS_AT_A_TIME = 128
QWEN_VOCAB, QWEN_PADDED = 151_669, 151_936
LLAMA_VOCAB = 128_256


def reference(
    logits_TC: Tensor, targets_T: Tensor, vocab_size: int, temperature: float, clamp: float | None, weights_3T: Tensor
) -> Any:
    """(the three statistics [3, T], gradient_TC of their weighted sum) of float64, from log_softmax and a stable sort."""
    x_TV = logits_TC[:, :vocab_size].double()
    kept_TV = torch.ones_like(x_TV, dtype=torch.bool)
    if clamp is not None and int(clamp * vocab_size) > 0:
        dropped = x_TV.argsort(dim=1, descending=True, stable=True)[:, vocab_size - int(clamp * vocab_size) :]
        kept_TV.scatter_(1, dropped, False)
    values, grad_TV = [], torch.zeros_like(x_TV)
    for weight_T, masked_TV in zip(weights_3T[1:], (x_TV, x_TV.masked_fill(~kept_TV, -torch.inf)), strict=True):
        log_p_TV = (masked_TV / temperature).log_softmax(1)
        p_TV = log_p_TV.exp()
        entropy_T = -(p_TV * log_p_TV.clamp(min=-1e300)).sum(1)
        slope_TV = -p_TV * (log_p_TV.clamp(min=-1e300) + entropy_T[:, None])
        if not values:
            values.append(log_p_TV.gather(1, targets_T[:, None]).squeeze(1))
            grad_TV -= p_TV * weights_3T[0, :, None]
            grad_TV.scatter_add_(1, targets_T[:, None], weights_3T[0, :, None].double())
        values.append(entropy_T)
        if clamp is not None or len(values) == 2:
            grad_TV += slope_TV * weight_T[:, None]
    grad_TC = torch.zeros(logits_TC.shape, dtype=torch.float64, device=logits_TC.device)
    grad_TC[:, :vocab_size] = grad_TV / temperature
    return torch.stack(values), grad_TC


def largest_error(actual: Tensor, exact: Tensor, tolerance: float, rounding: float, what: str) -> float:
    """The largest error, absolute up to 1 and relative beyond; AssertionError when it (or a NaN) passes the tolerance."""
    error = (actual.double() - exact).abs() - rounding * exact.abs()
    scaled = error / exact.abs().clamp(min=1)
    assert bool(actual.isfinite().all()), f"{what}: not finite"
    worst = float(scaled.max())
    assert worst <= tolerance, f"{what}: off by {worst:.3g}, {tolerance:.3g} allowed"
    return max(worst, 0.0)


def check_real_size(
    dtype: torch.dtype, vocab_size: int, width: int, clamp: float | None, temperature: float, offset: float, rounded: bool, masked: bool
) -> None:
    """2048 rows against float64; 5e-6 for values, 2e-5 (over the temperature) and one rounding for gradients."""
    generator = torch.Generator("cuda").manual_seed(7)
    rows = 2048
    logits_TC = (torch.randn(rows, width, generator=generator, device="cuda") * 2.5 + offset).to(dtype)
    if rounded:
        logits_TC = logits_TC.round()
    logits_TC[:, vocab_size:] = torch.nan
    logits_TC[::7, 5:4000:3] = -torch.inf
    targets_T = torch.randint(4000, vocab_size, (rows,), generator=generator, device="cuda")
    weights_3T = torch.randn(3, rows, generator=generator, device="cuda")
    mask_T = torch.rand(rows, generator=generator, device="cuda") < 0.5 if masked else None
    logits_TC.requires_grad_()
    statistics = token_statistics(logits_TC, targets_T, vocab_size=vocab_size, temperature=temperature, clamp=clamp, mask=mask_T)
    total = sum((x * w_T).sum() for x, w_T in zip(statistics, weights_3T, strict=True) if x is not None)
    assert isinstance(total, Tensor)
    (grad_TC,) = torch.autograd.grad(total, logits_TC)
    if mask_T is not None:
        assert (grad_TC[~mask_T] == 0).all()
        assert all(x is None or bool((x[~mask_T] == 0).all()) for x in statistics)
    worst = {}
    for start in range(0, rows, ROWS_AT_A_TIME):
        part = torch.arange(start, start + ROWS_AT_A_TIME, device="cuda")
        if mask_T is not None:
            part = part[mask_T[part]]
        values, exact_grad = reference(logits_TC.detach()[part], targets_T[part], vocab_size, temperature, clamp, weights_3T[:, part])
        for name, actual, exact in zip(NAMES, statistics, values, strict=True):
            if actual is not None:
                worst[name] = max(worst.get(name, 0.0), largest_error(actual[part], exact, 5e-6, 0.0, name))
        tolerance = 2e-5 * max(1.0, 1 / temperature)
        error = largest_error(grad_TC[part], exact_grad, tolerance, gradient_rounding(dtype) / 2, "gradient")
        worst["gradient"] = max(worst.get("gradient", 0.0), error)
    print("   ", ", ".join(f"{name} {error:.2g}" for name, error in worst.items()))


def check_more_than_2_31_elements() -> None:
    """The last rows of a tensor of 2.3e9 elements get what a small copy of them gets, gradient and all."""
    rows, width = 15_000, QWEN_PADDED
    logits_TC = torch.zeros(rows, width, dtype=torch.bfloat16, device="cuda")
    logits_TC[-2:] = torch.randn(2, width, device="cuda")
    targets_T = torch.full((rows,), 77, device="cuda")
    results = []
    for part_TC in (logits_TC, logits_TC[-2:].clone()):
        part_TC.requires_grad_()
        statistics = token_statistics(part_TC, targets_T[-len(part_TC) :], vocab_size=QWEN_VOCAB, clamp=0.4)
        total = sum(x[-2:].sum() for x in statistics if x is not None)
        assert isinstance(total, Tensor)
        (grad_TC,) = torch.autograd.grad(total, part_TC)
        results.append([*(x[-2:] for x in statistics if x is not None), grad_TC[-2:]])
        assert not grad_TC[:-2].any()
    for large, small in zip(*results, strict=True):
        assert torch.equal(large, small)


def check_memory() -> None:
    """Forward and backward hold the logits, their gradient, and per-token numbers (256 counts a token with a clamp)."""
    logits_TV = torch.randn(1024, LLAMA_VOCAB, device="cuda").bfloat16().requires_grad_()
    targets_T = torch.zeros(1024, dtype=torch.int64, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    statistics = token_statistics(logits_TV, targets_T, vocab_size=LLAMA_VOCAB, clamp=0.4)
    forward = torch.cuda.max_memory_allocated() - before
    assert statistics.clamped_entropy is not None
    (statistics.entropy.sum() + statistics.clamped_entropy.sum()).backward()  # type: ignore[no-untyped-call]
    backward = torch.cuda.max_memory_allocated() - before
    logits_bytes = logits_TV.numel() * 2
    print(f"    beyond the logits: forward {forward / 2**20:.1f} MiB, with the gradient {backward / 2**20:.1f} MiB")
    assert forward < 0.03 * logits_bytes
    assert backward < 1.03 * logits_bytes


def check_the_output_layer(tokens: int = 4096, columns: int = 50_257, hidden_size: int = 1024) -> None:
    """bfloat16, an odd vocabulary: what whole logits give, added to main_grad, and nothing of the weight's size beside it."""
    for clamp in (None, 0.4):
        hidden_TH = torch.randn(tokens, hidden_size, device="cuda").bfloat16().requires_grad_()
        weight_VH = torch.nn.Parameter((torch.randn(columns, hidden_size, device="cuda") / 32).bfloat16())
        weight_VH.main_grad = torch.ones(columns, hidden_size, device="cuda")  # type: ignore[attr-defined]
        weight_VH.grad_added_to_main_grad = False  # type: ignore[attr-defined]
        targets_T = torch.randint(columns, (tokens,), device="cuda")
        logits_TV = (hidden_TH @ weight_VH.T).detach().requires_grad_()
        whole = token_statistics(logits_TV, targets_T, vocab_size=columns, clamp=clamp)
        (grad_TV,) = torch.autograd.grad(_sum(whole), logits_TV)
        references = [*whole[:2], grad_TV.float() @ weight_VH.float(), grad_TV.float().T @ hidden_TH.float() + 1]
        del logits_TV, grad_TV
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        tiled = linear_token_statistics(hidden_TH, weight_VH, targets_T, vocab_size=columns, clamp=clamp, accumulate_main_grad=True)
        torch.autograd.backward(_sum(tiled))
        peak = torch.cuda.max_memory_allocated() - before
        for actual, reference in zip([*tiled[:2], hidden_TH.grad, weight_VH.main_grad], references, strict=True):  # type: ignore[attr-defined]
            assert actual is not None
            assert (actual - reference).abs().max() <= 0.02 * reference.abs().max(), clamp  # logits are rounded to bfloat16
        logits = LogitsShape(tokens, columns, columns, 2)
        tile = tile_shape(memory_of_gpu(hidden_TH.device), logits, selects=clamp is not None)
        print(f"    clamp {clamp}: {peak / 2**20:.0f} MiB beside operands and main_grad, {tile.elements / 2**19:.0f} of them a tile")
        assert peak <= 2 * tile.elements + 16 * tokens * hidden_size + 4096 * tokens


def _sum(statistics: TokenStatistics) -> Tensor:
    return torch.stack([x.sum() for x in statistics if x is not None]).sum()


def _compare_on_a_rank(rank: int, ranks: int, port: int, answers: Any) -> None:
    try:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(ranks))
        dist.init_process_group("gloo", timeout=timedelta(seconds=120))
        group = dist.group.WORLD
        assert group is not None
        kernel_checks.use_kernels_here("cuda")
        kernel_checks.compare_problems_on_ranks(24, group)
        answers.put((rank, None))
    except BaseException:  # noqa: BLE001 - reported to the parent, which raises it
        answers.put((rank, traceback.format_exc()))


def check_two_tensor_ranks() -> None:
    """Two processes on one GPU, the collectives over gloo: random problems of every kind."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    ranks = [context.Process(target=_compare_on_a_rank, args=(rank, 2, port, answers), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    try:
        for _ in ranks:
            rank, failure = answers.get(timeout=400)
            assert failure is None, f"rank {rank}:\n{failure}"
    except Empty:
        raise AssertionError(f"no answer in 400 s; exit codes so far: {[process.exitcode for process in ranks]}") from None
    finally:
        for process in ranks:
            process.join(timeout=10)
            process.kill()


def named(name: str, *arguments: Any) -> Any:
    check = partial(check_real_size, *arguments)
    check.__name__ = f"check_real_size: {name}"  # type: ignore[attr-defined]
    return check


BF16, FP32, FP16 = torch.bfloat16, torch.float32, torch.float16
CHECKS: tuple[Any, ...] = (
    named("bf16, 151,669 of 151,936", BF16, QWEN_VOCAB, QWEN_PADDED, None, 1.0, 0.0, False, False),
    named("bf16, clamp 0.4", BF16, QWEN_VOCAB, QWEN_PADDED, 0.4, 0.6, 0.0, False, False),
    named("fp32, clamp 0.4", FP32, QWEN_VOCAB, QWEN_PADDED, 0.4, 1.0, 0.0, False, False),
    named("fp32, offset -3e4", FP32, QWEN_VOCAB, QWEN_PADDED, 0.4, 1.0, -3e4, False, False),
    named("fp16, half the rows masked", FP16, LLAMA_VOCAB, LLAMA_VOCAB, 0.3, 0.6, 0.0, False, True),
    named("bf16, thousands of ties", BF16, LLAMA_VOCAB, LLAMA_VOCAB, 0.5, 1.0, 0.0, True, False),
    named("bf16, clamp 0.999, a shard of 16,032", BF16, 16_032, 16_032, 0.999, 1.0, 0.0, False, True),
    check_more_than_2_31_elements,
    check_memory,
    check_the_output_layer,
    check_two_tensor_ranks,
)


def main() -> int:
    if not torch.cuda.is_available():
        print("FAILED: torch sees no GPU", file=sys.stderr)
        return 1
    kernel_checks.use_kernels_here("cuda")
    return kernel_checks.run_checks(CHECKS)


if __name__ == "__main__":
    sys.exit(main())
