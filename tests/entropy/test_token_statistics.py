"""token_statistics on one rank: against the definition, in every corner; what it saves; what it refuses."""

import gc
import math
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_entropic.entropy import TokenStatistics, shard, token_statistics
from tests.entropy.oracle import DTYPES, NAMES, Problem, assert_close, expected, gradient_rounding, random_problem, weighted_sum


def lay_out(logits_NC: Tensor, layout: str) -> Tensor:
    """The same values as [N, C] or [2, N/2, C], in memory as named."""
    if layout == "columns":
        return torch.cat([logits_NC, logits_NC], 1)[:, : logits_NC.shape[1]]
    if layout == "strided":
        return logits_NC.t().contiguous().t()
    if layout == "transposed" and len(logits_NC) % 2 == 0:
        return logits_NC.view(2, -1, logits_NC.shape[1]).transpose(0, 1).contiguous().transpose(0, 1)
    return logits_NC.contiguous()


def check(problem: Problem, layout: str = "contiguous") -> None:
    """Values to 5e-6, gradients to 2e-5 (and the rounding of their dtype)."""
    logits = lay_out(problem.logits_NC, layout).requires_grad_()
    lead = logits.shape[:-1]
    mask = None if problem.mask_N is None else problem.mask_N.view(lead)
    statistics = token_statistics(logits, problem.targets_N.view(lead), **{**problem.arguments(), "mask": mask})  # type: ignore[arg-type]
    values, grad_NC = expected(problem)
    for name, actual, reference in zip(NAMES, statistics, values, strict=True):
        assert (actual is None) == (reference is None), name
        if actual is not None and reference is not None:
            assert actual.dtype == torch.float32
            assert actual.shape == lead
            assert_close(actual.reshape(-1), reference, 5e-6, what=name)
    weighted_sum(statistics, problem.weights_3N).backward()
    assert logits.grad is not None
    assert logits.grad.dtype == logits.dtype
    tolerance = 2e-5 * max(1.0, 1 / problem.temperature)
    assert_close(logits.grad.reshape(grad_NC.shape), grad_NC, tolerance, gradient_rounding(logits.dtype), "gradient")


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(0, 6),
    vocab_size=st.one_of(st.integers(1, 3), st.integers(1, 60)),
    padding=st.integers(0, 5),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(["contiguous", "columns", "strided", "transposed"]),
)
def test_agrees_with_the_definition(seed: int, rows: int, vocab_size: int, padding: int, dtype: torch.dtype, layout: str) -> None:
    check(random_problem(seed, rows, vocab_size, padding, dtype), layout)


@pytest.mark.parametrize("offset", [0.0, -3e4, 3e4])
@pytest.mark.parametrize("scale", [1.0, 10.0, 1e4])
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_large_vocabulary_stays_accurate(offset: float, scale: float, temperature: float) -> None:
    generator = torch.Generator().manual_seed(int(scale))
    logits_NV = torch.randn(3, 5000, generator=generator) * scale + offset
    targets_N = torch.stack([logits_NV[0].argmax(), logits_NV[1].argmin(), torch.tensor(17)])
    check(Problem(logits_NV, targets_N, 5000, temperature, 0.4, None, True, torch.randn(3, 3, generator=generator)))


def test_rows_are_worked_on_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "BLOCK_BYTES", 4 * 40 * 2)  # two rows of 40 columns
    for seed in range(12):
        check(random_problem(seed, 7, 40, 3, torch.float32))
        check(random_problem(seed, 6, 40, 3, torch.bfloat16), "transposed")


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3), (0,), (2, 0)])
@pytest.mark.parametrize("step", [1, 2])
def test_any_leading_shape(shape: tuple[int, ...], step: int) -> None:
    logits = torch.randn(*shape, 11 * step)[..., ::step].requires_grad_()
    targets = torch.zeros(shape, dtype=torch.int64)
    statistics = token_statistics(logits, targets, vocab_size=11, clamp=0.4, mean_lowering=True)
    assert all(x is not None and x.shape == shape for x in statistics)
    weighted_sum(statistics, torch.ones(3, math.prod(shape))).backward()
    assert logits.grad is not None
    assert logits.grad.shape == logits.shape


def test_without_a_clamp_there_is_no_clamped_entropy() -> None:
    assert token_statistics(torch.randn(2, 4), torch.zeros(2, dtype=torch.int64), vocab_size=4).clamped_entropy is None


def test_mean_lowering_only_on_request_and_without_gradient() -> None:
    logits_NV, targets_N = torch.randn(2, 4, requires_grad=True), torch.zeros(2, dtype=torch.int64)
    plain = token_statistics(logits_NV, targets_N, vocab_size=4)
    asked = token_statistics(logits_NV, targets_N, vocab_size=4, mean_lowering=True)
    assert plain.mean_lowering is None
    assert asked.mean_lowering is not None
    assert not asked.mean_lowering.requires_grad
    assert asked.entropy.requires_grad
    assert torch.equal(asked.entropy, plain.entropy)
    assert torch.equal(asked.log_prob, plain.log_prob)


@pytest.mark.parametrize("rest", [-math.inf, -1e30, -200.0])
def test_mean_lowering_of_a_certain_token_and_of_equal_ones_is_zero(rest: float) -> None:
    logits_NV = torch.full((2, 1000), rest)
    logits_NV[0, 3] = 1e4
    logits_NV[1, ::2] = 5.0
    lowering_N = token_statistics(logits_NV, torch.tensor([3, 0]), vocab_size=1000, mean_lowering=True).mean_lowering
    assert lowering_N is not None
    assert lowering_N[0] == 0
    assert abs(float(lowering_N[1])) < 1e-9  # each of 500 equal tokens has log p + H = 0


def test_rows_outside_the_mask_may_hold_anything() -> None:
    logits_NV = torch.randn(3, 9)
    logits_NV[1] = math.nan
    logits_NV.requires_grad_()
    statistics = token_statistics(
        logits_NV, torch.tensor([0, -100, 8]), vocab_size=9, clamp=0.4, mask=torch.tensor([True, False, True]), mean_lowering=True
    )
    assert all(x is not None and x[1] == 0 and (x[[0, 2]] != 0).all() for x in statistics)
    weighted_sum(statistics, torch.ones(3, 3)).backward()
    assert logits_NV.grad is not None
    assert (logits_NV.grad[1] == 0).all()
    assert logits_NV.grad.isfinite().all()


def test_negative_zero_ties_with_zero() -> None:
    """Keep 3 of [-0, 0, -0, 3, -1]: id 3, then the two lowest of the ties; seen in who gets a gradient."""
    logits_NV = torch.tensor([[-0.0, 0.0, -0.0, 3.0, -1.0]], requires_grad=True)
    statistics = token_statistics(logits_NV, torch.tensor([0]), vocab_size=5, clamp=0.5)  # K = 3
    assert statistics.clamped_entropy is not None
    (grad_NV,) = torch.autograd.grad(statistics.clamped_entropy.sum(), logits_NV)
    assert grad_NV.ne(0).tolist() == [[True, True, False, True, False]]


@pytest.mark.parametrize("clamp", [None, 0.0, 0.4])
@pytest.mark.parametrize("masked", [False, True])
def test_numerical_gradient(clamp: float | None, masked: bool) -> None:
    logits_NV = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mask_N = torch.tensor([True, False, True, True]) if masked else None

    def run(logits: Tensor) -> tuple[Tensor, ...]:
        statistics = token_statistics(logits, torch.tensor([0, 3, 6, 2]), vocab_size=7, temperature=0.7, clamp=clamp, mask=mask_N)
        return tuple(x for x in statistics if x is not None)

    assert run(logits_NV)[0].dtype == torch.float64
    assert torch.autograd.gradcheck(run, logits_NV)


@pytest.mark.parametrize("used", [[0], [1], [2], [0, 1], [1, 2], [0, 2]])
@pytest.mark.parametrize("clamp", [0.0, 0.4])
def test_unused_results_have_no_share_in_the_gradient(used: list[int], clamp: float) -> None:
    problem = random_problem(5, 4, 20, 2, torch.float32)
    problem.mask_N, problem.clamp, problem.targets_N = None, clamp, torch.arange(4)
    problem.weights_3N[[i for i in range(3) if i not in used]] = 0
    logits_NC = problem.logits_NC.clone().requires_grad_()
    statistics = token_statistics(logits_NC, problem.targets_N, **problem.arguments())  # type: ignore[arg-type]
    results = [x for i, x in enumerate(statistics) if i in used and x is not None]
    (grad_NC,) = torch.autograd.grad(results, logits_NC, [problem.weights_3N[i] for i in used])
    assert_close(grad_NC, expected(problem)[1], 1e-4, what="gradient")


def test_a_ruled_out_target_has_log_prob_minus_infinity_and_the_usual_gradient() -> None:
    logits_NV = torch.tensor([[1.0, -math.inf, 0.0]], requires_grad=True)
    statistics = token_statistics(logits_NV, torch.tensor([1]), vocab_size=3)
    assert statistics.log_prob.item() == -math.inf
    (grad_NV,) = torch.autograd.grad(statistics.log_prob.sum(), logits_NV)
    assert_close(grad_NV, torch.tensor([[0.0, 1.0, 0.0]]) - logits_NV.softmax(1), 1e-6)


class Kept:
    """Records what autograd saves."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def pack(self, tensor: Tensor) -> Tensor:
        self.tensors.append(tensor)
        return tensor

    def hooks(self) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_saves_the_logits_themselves_and_scalars(dtype: torch.dtype, masked: bool) -> None:
    logits = torch.randn(4, 6, 500, dtype=dtype).transpose(0, 1).requires_grad_()
    mask = torch.rand(6, 4) < 0.5 if masked else None
    kept = Kept()
    with kept.hooks():
        token_statistics(logits, torch.zeros(6, 4, dtype=torch.int64), vocab_size=480, clamp=0.4, mask=mask)
    large = [x for x in kept.tensors if x.numel() > 24]
    assert [x.data_ptr() for x in large] == [logits.data_ptr()]
    assert large[0].shape == logits.shape
    assert 0 < len(kept.tensors) - 1 <= 9


@pytest.mark.parametrize("needs_grad", [False, True])
def test_keeps_nothing_when_no_gradient_is_needed(needs_grad: bool) -> None:
    logits = torch.randn(3, 50, requires_grad=needs_grad)
    reference = weakref.ref(logits)
    kept = Kept()
    with kept.hooks(), torch.set_grad_enabled(not needs_grad):
        statistics = token_statistics(logits, torch.zeros(3, dtype=torch.int64), vocab_size=50, clamp=0.4)
    assert kept.tensors == []
    assert not statistics.log_prob.requires_grad
    del logits
    gc.collect()
    assert reference() is None


def test_backward_leaves_what_it_read_unchanged_and_can_run_twice() -> None:
    logits_NV = torch.randn(5, 30).requires_grad_()
    before_NV = logits_NV.detach().clone()
    statistics = token_statistics(logits_NV, torch.zeros(5, dtype=torch.int64), vocab_size=30, clamp=0.4)
    total = weighted_sum(statistics, torch.ones(3, 5))
    (first,) = torch.autograd.grad(total, logits_NV, retain_graph=True)
    (second,) = torch.autograd.grad(total, logits_NV)
    assert torch.equal(first, second)
    assert torch.equal(logits_NV, before_NV)


def test_results_may_be_changed_in_place_before_backward() -> None:
    logits_NV = torch.randn(5, 30).requires_grad_()
    statistics = token_statistics(logits_NV, torch.zeros(5, dtype=torch.int64), vocab_size=30)
    statistics.entropy.detach().mul_(0)
    (grad_NV,) = torch.autograd.grad(statistics.entropy.sum(), logits_NV)
    assert grad_NV.abs().sum() > 0


def test_second_derivatives_are_refused() -> None:
    logits_NV = torch.randn(2, 5, requires_grad=True)
    entropy = token_statistics(logits_NV, torch.zeros(2, dtype=torch.int64), vocab_size=5).entropy
    (grad_NV,) = torch.autograd.grad(entropy.sum(), logits_NV, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        grad_NV.sum().backward()


BAD_ROWS = {"a logit is NaN": math.nan, r"a logit is \+inf": math.inf, "every logit is -inf": -math.inf}


@pytest.mark.parametrize("reason", BAD_ROWS)
@pytest.mark.parametrize("masked", [False, True])
def test_bad_rows_are_named(reason: str, masked: bool) -> None:
    logits = torch.randn(3, 2, 8)
    logits[2, 1] = -math.inf
    logits[2, 1, 5] = BAD_ROWS[reason]
    mask = None
    if masked:
        mask = torch.tensor([[False, True], [False, False], [True, True]])
    with pytest.raises(ValueError, match=rf"row 5 \(index \(2, 1\) of \(3, 2\)\): {reason}"):
        token_statistics(logits, torch.zeros(3, 2, dtype=torch.int64), vocab_size=8, clamp=0.4, mask=mask)
    options = {"clamp": 0.4, "mean_lowering": True, "validate": False}
    statistics = token_statistics(logits, torch.zeros(3, 2, dtype=torch.int64), vocab_size=8, **options)  # type: ignore[arg-type]
    assert all(x is not None and x[2, 1].isnan() and x.isnan().sum() == 1 for x in statistics)


@pytest.mark.parametrize("target", [-1, 8, 9, 2**40])
def test_targets_that_are_no_tokens_are_named(target: int) -> None:
    logits_NC, targets_N = torch.randn(3, 9), torch.tensor([0, target, 1])
    with pytest.raises(ValueError, match=rf"row 1 .*not a token id \(target {target}, vocabulary 8\)"):
        token_statistics(logits_NC, targets_N, vocab_size=8)
    assert token_statistics(logits_NC, targets_N, vocab_size=8, validate=False).log_prob.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"targets": torch.zeros(3, dtype=torch.int64)}, ValueError, "targets has shape"),
        ({"targets": torch.zeros(2, dtype=torch.int32)}, TypeError, "targets must be int64"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, ValueError, "mask has shape"),
        ({"mask": torch.ones(2)}, TypeError, "mask must be bool"),
        ({"vocab_size": 6}, ValueError, "vocab_size=6"),
        ({"vocab_size": 0}, ValueError, "vocab_size=0"),
        ({"temperature": 0.0}, ValueError, "temperature=0.0"),
        ({"temperature": math.nan}, ValueError, "temperature=nan"),
        ({"clamp": 1.0}, ValueError, "clamp=1.0"),
        ({"clamp": -0.1}, ValueError, "clamp=-0.1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"logits": torch.randn(2, 5), "targets": torch.zeros(2, dtype=torch.int64), "vocab_size": 5, **changes}
    with pytest.raises(error, match=message):
        token_statistics(arguments.pop("logits"), arguments.pop("targets"), **arguments)


def test_result_is_the_public_type() -> None:
    logits_NV = torch.randn(2, 5, requires_grad=True)
    statistics = token_statistics(logits_NV, torch.zeros(2, dtype=torch.int64), vocab_size=5)
    assert isinstance(statistics, TokenStatistics)
    assert statistics._fields == NAMES
