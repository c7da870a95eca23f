"""Checks of the Triton kernels, as plain functions: in Triton's interpreter on a CPU, compiled on a GPU.

    TRITON_INTERPRET=1 python -m tests.entropy.kernel_checks            small blocks, so that small rows have many
    python -m tests.entropy.kernel_checks --device cuda

Needs PyTorch and Triton alone. Prints each check's name and time; all are run, and the exit code is 1 when any failed.
"""

import argparse
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_entropic.entropy import linear_token_statistics, moments, row_math, selection, token_statistics
from megatron_entropic.entropy.records import UpstreamGradients
from megatron_entropic.entropy.shard import ShardRows, VocabShard
from tests.entropy.membership import kept
from tests.entropy.oracle import DTYPES, NAMES, Problem, assert_close, expected, gradient_rounding, random_problem, weighted_sum
from tests.entropy.ranks import equal_on_all_ranks, shard_of, start_group
from tests.run_ranks import run_ranks

DEVICE = "cpu"
"""Where the kernels run; set by `main`."""

LAYOUTS = ("contiguous", "columns", "strided", "transposed")
_interpreting = False


def _runs_interpreted(logits: Tensor) -> bool:
    return _interpreting


@contextmanager
def plain_torch() -> Iterator[None]:
    """Inside, tensors on the CPU are worked on by plain torch again."""
    global _interpreting
    before, _interpreting = _interpreting, False
    yield
    _interpreting = before


def lay_out(logits_NC: Tensor, layout: str) -> Tensor:
    """The same values as [N, C] or [2, N/2, C], in memory as named."""
    if layout == "columns":
        return torch.cat([logits_NC, logits_NC], 1)[:, : logits_NC.shape[1]]
    if layout == "strided":
        return logits_NC.t().contiguous().t()
    if layout == "transposed" and len(logits_NC) % 2 == 0:
        return logits_NC.view(2, -1, logits_NC.shape[1]).transpose(0, 1).contiguous().transpose(0, 1)
    return logits_NC.contiguous()


def check_problem(problem: Problem, layout: str = "contiguous") -> None:
    """Values to 5e-6 and gradients to 2e-5 of the definition, and the rounding of the gradient's dtype."""
    logits = lay_out(problem.logits_NC.to(DEVICE), layout).requires_grad_()
    lead = logits.shape[:-1]
    mask = None if problem.mask_N is None else problem.mask_N.view(lead).to(DEVICE)
    arguments = {**problem.arguments(), "mask": mask}
    statistics = token_statistics(logits, problem.targets_N.view(lead).to(DEVICE), **arguments)  # type: ignore[arg-type]
    values, grad_NC = expected(problem)
    for name, actual, reference in zip(NAMES, statistics, values, strict=True):
        assert (actual is None) == (reference is None), name
        if actual is not None and reference is not None:
            assert actual.dtype == torch.float32
            assert_close(actual.reshape(-1).cpu(), reference, 5e-6, what=name)
    total = sum(
        ((v.reshape(-1) * w_N).sum() for v, w_N in zip(statistics[:3], problem.weights_3N.to(DEVICE), strict=True) if v is not None),
        torch.zeros((), device=DEVICE),
    )
    total.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.dtype == logits.dtype
    tolerance = 2e-5 * max(1.0, 1 / problem.temperature)
    grad = logits.grad.reshape(grad_NC.shape).cpu()
    assert_close(grad, grad_NC, tolerance, gradient_rounding(logits.dtype), "gradient")


def check_the_definition() -> None:
    """Shapes from one token to several spans, every dtype, layout, temperature, clamp; -inf, ties, masks, padding, no rows."""
    for seed in range(60):
        vocab_size = (1, 2, 3, 40, 127, 128, 129, 300, 700)[seed % 9]
        problem = random_problem(seed, seed % 5, vocab_size, seed % 4, DTYPES[seed % 3])
        check_problem(problem, LAYOUTS[seed // 3 % 4])


def check_large_logits_stay_accurate() -> None:
    generator = torch.Generator().manual_seed(0)
    for offset, scale in ((0.0, 1e4), (-3e4, 1.0), (3e4, 10.0)):
        logits_NV = torch.randn(3, 900, generator=generator) * scale + offset
        targets_N = torch.stack([logits_NV[0].argmax(), logits_NV[1].argmin(), torch.tensor(17)])
        check_problem(Problem(logits_NV, targets_N, 900, 0.6, 0.4, weights_3N=torch.randn(3, 3, generator=generator)))


def check_ties_that_fill_several_blocks() -> None:
    """Rounded logits: some thresholds lie in the middle of hundreds of ties."""
    for seed, clamp in enumerate((0.1, 0.35, 0.5, 0.9, 0.999)):
        generator = torch.Generator().manual_seed(seed)
        logits_NV = (torch.randn(3, 650, generator=generator) * 1.5).round()
        logits_NV[2] = 0.0
        logits_NV[2, ::3] = -0.0
        logits_NV = logits_NV.to(DTYPES[seed % 3])
        weights_3N = torch.randn(3, 3, generator=generator)
        check_problem(Problem(logits_NV, torch.tensor([0, 1, 649]), 650, 1.0, clamp, weights_3N=weights_3N))


def check_equal_to_plain_torch() -> None:
    """The three kernels one by one: the same key, the same members, moments to 1e-6, gradients to their rounding."""
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        dtype, width, columns = DTYPES[seed % 3], 600, 573 - seed
        logits_NV = (torch.randn(5, width, generator=generator) * 3).to(dtype)
        if seed % 2:
            logits_NV = logits_NV.round()
        rows_T = None if seed % 4 == 0 else torch.tensor([4, 0, 3])
        columns_T = torch.randint(-1, columns, (5 if rows_T is None else 3,), generator=generator)
        plain, rows = ShardRows(logits_NV, rows_T, columns), _rows_on_device(logits_NV, rows_T, columns)
        shard = VocabShard.of(width, columns, None)
        with plain_torch():
            cut = selection.select_largest(plain, columns // 3, shard)
        device_cut = selection.select_largest(rows, columns // 3, shard)
        assert torch.equal(cut.key_T, device_cut.key_T.cpu())
        inside = slice(None) if rows_T is None else rows_T
        real_TV = logits_NV[inside, :columns]
        host_cut = selection.Threshold(device_cut.key_T.cpu(), device_cut.tie_end_T.cpu())
        assert torch.equal(kept(cut, real_TV), kept(host_cut, real_TV))
        for with_cut in (False, True):
            one, two = (cut, device_cut) if with_cut else (None, None)
            with plain_torch():
                theirs = row_math.local_moments(plain, columns_T, 0.7, one, squares=True)
            ours = row_math.local_moments(rows, columns_T.to(DEVICE), 0.7, two, squares=True)
            assert torch.equal(theirs.max_T, ours.max_T.cpu())
            assert_close(ours.sums_KT.cpu(), theirs.sums_KT, 1e-6, what="moments")
            assert theirs.squares_2T is not None
            assert ours.squares_2T is not None
            assert_close(ours.squares_2T.cpu(), theirs.squares_2T, 1e-6, what="squares")
            _, scalars = moments.finish(theirs)
            upstream = UpstreamGradients(*(torch.randn(len(columns_T), generator=generator) for _ in range(3)))
            if not with_cut:
                upstream = upstream._replace(kept_entropy_T=None)
            grad_NV, ours_NV = torch.zeros_like(logits_NV), torch.full_like(logits_NV, 7).to(DEVICE)
            with plain_torch():
                row_math.write_logits_gradient(plain, columns_T, 0.7, scalars, one, upstream, grad_NV)
            there = [type(x)(*(None if y is None else y.to(DEVICE) for y in x)) for x in (scalars, upstream)]
            row_math.write_logits_gradient(rows, columns_T.to(DEVICE), 0.7, there[0], two, there[1], ours_NV)  # type: ignore[arg-type]
            assert_close(ours_NV.cpu(), grad_NV, 1e-6, gradient_rounding(dtype), "gradient")


def _rows_on_device(logits_NV: Tensor, rows_T: Tensor | None, columns: int) -> ShardRows:
    return ShardRows(logits_NV.to(DEVICE), None if rows_T is None else rows_T.to(DEVICE), columns)


def check_rows_outside_the_mask_are_not_read() -> None:
    logits_NV = torch.randn(3, 300, device=DEVICE)
    logits_NV[1] = math.nan
    logits_NV.requires_grad_()
    mask_N = torch.tensor([True, False, True], device=DEVICE)
    targets_N = torch.tensor([0, -100, 8], device=DEVICE)
    statistics = token_statistics(logits_NV, targets_N, vocab_size=290, clamp=0.4, mask=mask_N, mean_lowering=True)
    assert all(x is not None and x[1] == 0 and (x[[0, 2]] != 0).all() for x in statistics)
    sum(x.sum() for x in statistics if x is not None).backward()  # type: ignore[union-attr]
    assert logits_NV.grad is not None
    assert (logits_NV.grad[1] == 0).all()
    assert (logits_NV.grad[:, 290:] == 0).all()
    assert logits_NV.grad.isfinite().all()
    nobody = token_statistics(logits_NV, targets_N, vocab_size=290, clamp=0.4, mask=torch.zeros_like(mask_N), mean_lowering=True)
    (grad_NV,) = torch.autograd.grad(nobody.log_prob.sum(), logits_NV)
    assert (grad_NV == 0).all()


def check_bad_rows_are_named() -> None:
    for reason, value in (("a logit is NaN", math.nan), ("a logit is +inf", math.inf), ("every logit is -inf", -math.inf)):
        logits = torch.randn(3, 2, 300, device=DEVICE)
        logits[2, 1] = -math.inf
        logits[2, 1, 217] = value
        if value != -math.inf:
            logits[2, 1, 3] = math.inf  # beside +inf, a NaN is still the one that is named
        targets = torch.zeros(3, 2, dtype=torch.int64, device=DEVICE)
        message = ""
        try:
            token_statistics(logits, targets, vocab_size=300, clamp=0.4)
        except ValueError as error:
            message = str(error)
        assert f"row 5 (index (2, 1) of (3, 2)): {reason}" in message, (reason, message)
        statistics = token_statistics(logits, targets, vocab_size=300, clamp=0.4, mean_lowering=True, validate=False)
        assert all(x is not None and x[2, 1].isnan() and x.isnan().sum() == 1 for x in statistics), reason


def check_a_row_has_the_same_bits_in_any_company() -> None:
    """Alone, among others, behind a mask, transposed: nothing about a row's result depends on the rows beside it."""
    logits_NV = torch.randn(6, 700, device=DEVICE).bfloat16()
    targets_N = torch.arange(6, device=DEVICE)
    whole = token_statistics(logits_NV, targets_N, vocab_size=700, clamp=0.4, mean_lowering=True)
    mask_N = torch.tensor([False, True, False, False, True, True], device=DEVICE)
    masked = token_statistics(logits_NV, targets_N, vocab_size=700, clamp=0.4, mask=mask_N, mean_lowering=True)
    turned = token_statistics(lay_out(logits_NV, "transposed"), targets_N.view(2, 3), vocab_size=700, clamp=0.4, mean_lowering=True)
    alone = token_statistics(logits_NV[4:5], targets_N[4:5], vocab_size=700, clamp=0.4, mean_lowering=True)
    for of_whole, of_masked, of_turned, of_alone in zip(whole, masked, turned, alone, strict=True):
        assert of_whole is not None
        assert of_masked is not None
        assert of_turned is not None
        assert of_alone is not None
        assert torch.equal(of_masked[mask_N], of_whole[mask_N])
        assert torch.equal(of_turned.reshape(-1), of_whole)
        assert torch.equal(of_alone[0], of_whole[4])


def check_repeated_upstream_gradients() -> None:
    """A sum hands back one number for all rows, with stride 0."""
    logits_NV = torch.randn(4, 200, device=DEVICE, requires_grad=True)
    statistics = token_statistics(logits_NV, torch.zeros(4, dtype=torch.int64, device=DEVICE), vocab_size=200)
    (grad_NV,) = torch.autograd.grad(statistics.log_prob.sum(), logits_NV)
    softmax_NV = logits_NV.detach().softmax(1)
    softmax_NV[:, 0] -= 1
    assert_close(grad_NV.cpu(), -softmax_NV.cpu(), 1e-6)


def check_log_prob_alone() -> None:
    """Without the entropy, sum d exp(d) is left out and stays 0; with the squares, the other sums stay what they are."""
    from megatron_entropic.entropy.triton import moments as kernels

    rows = ShardRows(torch.randn(3, 700, device=DEVICE), None, 700)
    column_T = torch.tensor([0, 350, 699], device=DEVICE)
    with_entropy = kernels.local_moments(rows, column_T, 0.7, None)
    without = kernels.local_moments(rows, column_T, 0.7, None, entropy=False)
    assert torch.equal(with_entropy.max_T, without.max_T)
    assert torch.equal(with_entropy.sums_KT[[0, 2]], without.sums_KT[[0, 2]])
    assert (without.sums_KT[1] == 0).all()
    assert with_entropy.squares_2T is None
    with_squares = kernels.local_moments(rows, column_T, 0.7, None, squares=True)
    assert_close(with_squares.sums_KT.cpu(), with_entropy.sums_KT.cpu(), 1e-7)


def check_columns_that_are_all_padding() -> None:
    """A rank that holds padding only has empty sums and a gradient of zeros."""
    rows = ShardRows(torch.full((3, 64), math.nan, device=DEVICE), None, 0)
    nowhere_T = torch.full((3,), -1, device=DEVICE)
    empty = row_math.local_moments(rows, nowhere_T, 1.0, None, squares=True)
    assert (empty.max_T == -math.inf).all()
    assert (empty.sums_KT == 0).all()
    assert empty.squares_2T is not None
    assert (empty.squares_2T == 0).all()


def check_the_fused_head() -> None:
    """linear_token_statistics comes by the same kernels, chunk by chunk."""
    generator = torch.Generator().manual_seed(3)
    hidden_NH, weight_VH = torch.randn(7, 16, generator=generator), torch.randn(300, 16, generator=generator)
    targets_N = torch.randint(290, (7,), generator=generator)
    weights_3N = torch.randn(3, 7, generator=generator)
    results = []
    for chunk_tokens in (None, 3):
        hidden, weight = (x.clone().to(DEVICE).requires_grad_() for x in (hidden_NH, weight_VH))
        options = {"vocab_size": 290, "clamp": 0.4, "mean_lowering": True, "chunk_tokens": chunk_tokens}
        statistics = linear_token_statistics(hidden, weight, targets_N.to(DEVICE), **options)  # type: ignore[arg-type]
        weighted_sum(tuple(None if x is None else x.cpu() for x in statistics), weights_3N).backward()  # type: ignore[no-untyped-call]
        results.append([*statistics, hidden.grad, weight.grad])
    whole = Problem(hidden_NH @ weight_VH.T, targets_N, 290, clamp=0.4, mean_lowering=True, weights_3N=weights_3N)
    values, grad_NC = expected(whole)
    references = [*values, grad_NC @ weight_VH.double(), grad_NC.T @ hidden_NH.double()]
    for of_call in results:
        for actual, reference in zip(of_call, references, strict=True):
            assert actual is not None
            assert reference is not None
            assert_close(actual.cpu(), reference, 5e-5)


def check_gradient_in_the_logits_own_memory() -> None:
    """The fused head may overwrite its chunk (the interpreter works on copies: only a GPU shows it)."""
    from megatron_entropic.entropy.triton import gradient

    if DEVICE == "cpu":
        return
    logits_NV = torch.randn(4, 70_000, device=DEVICE).bfloat16()
    column_T = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    rows = ShardRows(logits_NV, None, 70_000)
    _, scalars = moments.finish(row_math.local_moments(rows, column_T, 1.0, None))
    upstream = UpstreamGradients(torch.ones(4, device=DEVICE), torch.ones(4, device=DEVICE), None)
    elsewhere_NV = torch.empty_like(logits_NV)
    gradient.write_logits_gradient(rows, column_T, 1.0, scalars, None, upstream, elsewhere_NV)
    gradient.write_logits_gradient(rows, column_T, 1.0, scalars, None, upstream, logits_NV)
    assert torch.equal(logits_NV, elsewhere_NV)


def compare_problems_on_ranks(count: int, group: dist.ProcessGroup) -> None:
    """This rank's part of random problems of every kind against the definition, and the same bits on all ranks."""
    ranks = dist.get_world_size(group)
    for seed in range(count):
        vocab_size = (1, 3, 50, 700, 1801)[seed % 5]
        problem = random_problem(seed, seed % 6, vocab_size, -vocab_size % ranks + ranks * (seed % 2), DTYPES[seed % 3])
        shard_NV = shard_of(problem.logits_NC, group).to(DEVICE).requires_grad_()
        mask_N = None if problem.mask_N is None else problem.mask_N.to(DEVICE)
        arguments = {**problem.arguments(), "mask": mask_N}
        statistics = token_statistics(shard_NV, problem.targets_N.to(DEVICE), tp_group=group, **arguments)  # type: ignore[arg-type]
        on_host = tuple(None if x is None else x.cpu() for x in statistics)
        weighted_sum(on_host, problem.weights_3N).backward()  # type: ignore[no-untyped-call]
        values, grad_NC = expected(problem)
        for name, actual, exact in zip(NAMES, on_host, values, strict=True):
            if actual is not None and exact is not None:
                assert equal_on_all_ranks(actual, group), name
                assert_close(actual, exact, 5e-6, what=name)
        assert shard_NV.grad is not None
        tolerance, rounding = 2e-5 * max(1.0, 1 / problem.temperature), gradient_rounding(shard_NV.dtype)
        assert_close(shard_NV.grad.cpu(), shard_of(grad_NC, group), tolerance, rounding, "gradient")


def check_two_ranks() -> None:
    """The kernels between collectives (on a GPU, gpu_checks.py has it: a process that uses one must not fork)."""
    if DEVICE == "cpu":
        run_ranks(_two_ranks, 2, timeout=200.0)


def _two_ranks() -> None:
    compare_problems_on_ranks(14, start_group())


CHECKS: tuple[Callable[[], None], ...] = (
    check_the_definition,
    check_large_logits_stay_accurate,
    check_ties_that_fill_several_blocks,
    check_equal_to_plain_torch,
    check_rows_outside_the_mask_are_not_read,
    check_bad_rows_are_named,
    check_a_row_has_the_same_bits_in_any_company,
    check_repeated_upstream_gradients,
    check_log_prob_alone,
    check_columns_that_are_all_padding,
    check_the_fused_head,
    check_gradient_in_the_logits_own_memory,
    check_two_ranks,
)


def use_kernels_here(device: str) -> None:
    """Sends this process's operations through the kernels: as they are on a GPU, interpreted and in small blocks on a CPU."""
    global DEVICE, _interpreting
    DEVICE = device
    if device == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            raise SystemExit("set TRITON_INTERPRET=1 to run the kernels without a GPU")
        from megatron_entropic.entropy import token_statistics
        from megatron_entropic.entropy.triton import common

        common.BLOCK, common.SPAN = 128, 256
        for module in (row_math, selection, sys.modules[token_statistics.__module__]):
            module.runs_kernels = _runs_interpreted  # type: ignore[attr-defined]
        _interpreting = True


def run_checks(checks: tuple[Callable[[], None], ...]) -> int:
    """Runs all of them, so that one run on a borrowed GPU tells everything; exit code: 0, or 1 when any failed."""
    failed = []
    for check in checks:
        start = time.perf_counter()
        try:
            check()
        except Exception:  # noqa: BLE001 - printed, and told by the exit code
            traceback.print_exc()
            print(f"FAILED {check.__name__} on {DEVICE}", flush=True)
            failed.append(check.__name__)
        else:
            print(f"passed {check.__name__} on {DEVICE} ({time.perf_counter() - start:.1f} s)", flush=True)
    print(f"{len(checks) - len(failed)} checks passed, {len(failed)} failed: {', '.join(failed) or 'none'}", flush=True)
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    use_kernels_here(parser.parse_args().device)
    return run_checks(CHECKS)


if __name__ == "__main__":
    sys.exit(main())
