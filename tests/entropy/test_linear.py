"""linear_token_statistics: the numbers of token_statistics(hidden @ weight.T), without the logits ever being whole."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_entropic.entropy import linear_token_statistics, sequence_chunks, token_statistics
from megatron_entropic.system import logits_tiles
from tests.entropy.oracle import NAMES, assert_close, gradient_rounding, weighted_sum
from tests.entropy.ranks import counted_collectives, equal_on_all_ranks, shard_of, start_group
from tests.run_ranks import run_ranks

SEQUENCE, BATCH, HIDDEN, VOCAB, PADDED = 8, 3, 16, 45, 48


class Case:
    """Hidden states, an output layer, targets, and what goes with them."""

    def __init__(self, dtype: torch.dtype, clamp: float | None, masked: bool) -> None:
        generator = torch.Generator().manual_seed(3)
        self.hidden = torch.randn(SEQUENCE, BATCH, HIDDEN, generator=generator).to(dtype)
        self.weight = torch.randn(PADDED, HIDDEN, generator=generator).to(dtype)
        self.targets = torch.randint(VOCAB, (SEQUENCE, BATCH), generator=generator)
        self.weights_3N = torch.randn(3, SEQUENCE * BATCH, generator=generator)
        mask = torch.rand(SEQUENCE, BATCH, generator=generator) < 0.6 if masked else None
        self.arguments: dict[str, Any] = {"vocab_size": VOCAB, "temperature": 0.8, "clamp": clamp, "mask": mask}
        self.arguments["mean_lowering"] = not masked

    def reference(self) -> tuple[tuple[Tensor | None, ...], Tensor, Tensor]:
        """Results and gradients of hidden and weight through whole logits on one rank."""
        hidden, weight = self.hidden.clone().requires_grad_(), self.weight.clone().requires_grad_()
        statistics = token_statistics(hidden @ weight.T, self.targets, **self.arguments)
        weighted_sum(statistics, self.weights_3N).backward()
        assert hidden.grad is not None
        assert weight.grad is not None
        return statistics, hidden.grad, weight.grad

    def tolerance(self) -> tuple[float, float]:
        """Of gradients: half-precision ones differ by the order their terms add up in."""
        return (2e-5, 0.0) if self.hidden.dtype == torch.float32 else (3e-2, 2 * gradient_rounding(self.hidden.dtype))


def check_results(statistics: tuple[Tensor | None, ...], reference: tuple[Tensor | None, ...]) -> None:
    for name, actual, wanted in zip(NAMES, statistics, reference, strict=True):
        assert (actual is None) == (wanted is None)
        if actual is not None and wanted is not None:
            assert actual.dtype == torch.float32
            assert_close(actual, wanted, 5e-6, what=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clamp", [None, 0.0, 0.4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 5])
def test_same_as_through_whole_logits(dtype: torch.dtype, clamp: float | None, masked: bool, chunk_tokens: int | None) -> None:
    case = Case(dtype, clamp, masked)
    reference, grad_hidden, grad_weight = case.reference()
    hidden, weight = case.hidden.clone().requires_grad_(), torch.nn.Parameter(case.weight.clone())
    statistics = linear_token_statistics(hidden, weight, case.targets, chunk_tokens=chunk_tokens, **case.arguments)
    check_results(statistics, reference)
    weighted_sum(statistics, case.weights_3N).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert (hidden.grad.dtype, weight.grad.dtype) == (dtype, dtype)
    assert_close(hidden.grad, grad_hidden, *case.tolerance(), what="gradient of hidden")
    assert_close(weight.grad, grad_weight, *case.tolerance(), what="gradient of weight")
    assert (weight.grad[VOCAB:] == 0).all()


@pytest.fixture
def narrow_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the default tiles of the small cases here a few columns wide."""
    set_narrow_tiles(monkeypatch.setattr)


def set_narrow_tiles(set_value: Any) -> None:
    set_value(logits_tiles, "TILES", 64)
    set_value(logits_tiles, "MIN_COLUMNS", 7)
    set_value(logits_tiles, "MIN_ELEMENTS", 1)
    set_value(logits_tiles, "ALIGNMENT", 1)


@pytest.mark.usefixtures("narrow_tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clamp", [None, 0.0])
@pytest.mark.parametrize("masked", [False, True])
def test_tiles_of_few_columns(dtype: torch.dtype, clamp: float | None, masked: bool) -> None:
    case = Case(dtype, clamp, masked)
    reference, grad_hidden, grad_weight = case.reference()
    hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()
    with WidestTensor() as widest:
        statistics = linear_token_statistics(hidden, weight, case.targets, **case.arguments)
        weighted_sum(statistics, case.weights_3N).backward()
    assert widest.numel == PADDED * HIDDEN
    check_results(statistics, reference)
    assert hidden.grad is not None
    assert weight.grad is not None
    assert_close(hidden.grad, grad_hidden, *case.tolerance(), what="gradient of hidden")
    assert_close(weight.grad, grad_weight, *case.tolerance(), what="gradient of weight")


@pytest.mark.usefixtures("narrow_tiles")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_row_is_named_whichever_tile_it_is_in(bad: float) -> None:
    hidden, weight = torch.ones(3, 1), torch.ones(20, 1)
    weight[12] = bad
    with pytest.raises(ValueError, match=r"row 0 \(index \(0,\) of \(3,\)\): a logit is"):
        linear_token_statistics(hidden, weight, torch.ones(3, dtype=torch.int64), vocab_size=20)


def test_numerical_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(5, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(7, 4, dtype=torch.float64, generator=generator, requires_grad=True)

    def run(hidden: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        targets = torch.tensor([0, 1, 5, 3, 2])
        return tuple(
            x for x in linear_token_statistics(hidden, weight, targets, vocab_size=6, clamp=0.4, chunk_tokens=2) if x is not None
        )

    assert torch.autograd.gradcheck(run, (hidden, weight))


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_input_gets_no_gradient(frozen: str) -> None:
    case = Case(torch.float32, 0.4, True)
    _, grad_hidden, grad_weight = case.reference()
    hidden, weight = case.hidden.requires_grad_(frozen != "hidden"), case.weight.requires_grad_(frozen != "weight")
    weighted_sum(linear_token_statistics(hidden, weight, case.targets, **case.arguments), case.weights_3N).backward()
    for name, tensor, reference in (("hidden", hidden, grad_hidden), ("weight", weight, grad_weight)):
        if name == frozen:
            assert tensor.grad is None
        else:
            assert tensor.grad is not None
            assert_close(tensor.grad, reference, 2e-5)


def test_tied_embedding_collects_both_gradients() -> None:
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(10, 6, generator=generator)
    ids, targets = torch.tensor([1, 2, 2]), torch.tensor([2, 2, 9])

    def gradient(fused: bool) -> Tensor:
        embedding = torch.nn.Parameter(table.clone())
        hidden = embedding[ids].tanh()
        if fused:
            statistics = linear_token_statistics(hidden, embedding, targets, vocab_size=10)
        else:
            statistics = token_statistics(hidden @ embedding.T, targets, vocab_size=10)
        (statistics.log_prob.sum() + statistics.entropy.sum()).backward()
        assert embedding.grad is not None
        return embedding.grad

    assert_close(gradient(True), gradient(False), 2e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_never_holds_the_logits_of_all_tokens(masked: bool) -> None:
    """The widest tensor that any operation makes, forward and backward, is a chunk's logits (or hidden, or the weight)."""
    tokens, vocab, chunk = 24, 2048, 4
    hidden, weight = torch.randn(tokens, 8, requires_grad=True), torch.randn(vocab, 8, requires_grad=True)
    mask = torch.arange(tokens) % 2 == 0 if masked else None
    kept: list[Tensor] = []
    with WidestTensor() as widest:
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            statistics = linear_token_statistics(
                hidden, weight, torch.zeros(tokens, dtype=torch.int64), vocab_size=vocab, clamp=0.4, mask=mask, chunk_tokens=chunk
            )
        weighted_sum(statistics, torch.ones(3, tokens)).backward()
    assert widest.numel == max(vocab * 8, chunk * vocab, tokens * 256)
    assert {x.data_ptr() for x in kept if x.numel() > tokens} == {hidden.data_ptr(), weight.data_ptr()}


class WidestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the largest result of any operation under it."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_default_chunk_follows_the_memory_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits_tiles, "CHUNK_BYTES", 4 * PADDED * 7)
    case = Case(torch.float32, 0.4, False)
    with WidestTensor() as widest:
        check_results(linear_token_statistics(case.hidden, case.weight, case.targets, **case.arguments), case.reference()[0])
    assert widest.numel >= 7 * VOCAB


def test_autocast_changes_nothing() -> None:
    case = Case(torch.float32, 0.4, False)
    reference, grad_hidden, _ = case.reference()
    hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        statistics = linear_token_statistics(hidden, weight, case.targets, **case.arguments)
        check_results(statistics, reference)
        weighted_sum(statistics, case.weights_3N).backward()
    assert hidden.grad is not None
    assert_close(hidden.grad, grad_hidden, 2e-5)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (2, 1, 3)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    hidden, weight = torch.randn(*shape, 5, requires_grad=True), torch.randn(9, 5, requires_grad=True)
    statistics = linear_token_statistics(
        hidden, weight, torch.zeros(shape, dtype=torch.int64), vocab_size=9, clamp=0.4, mean_lowering=True
    )
    assert all(x is not None and x.shape == shape for x in statistics)
    weighted_sum(statistics, torch.ones(3, math.prod(shape))).backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == hidden.shape
    assert weight.grad is not None


def test_arguments_that_do_not_fit_are_refused() -> None:
    hidden, targets = torch.randn(2, 5), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"hidden .* and weight"):
        linear_token_statistics(hidden, torch.randn(9, 4), targets, vocab_size=9)
    with pytest.raises(ValueError, match=r"of one dtype"):
        linear_token_statistics(hidden, torch.randn(9, 5).bfloat16(), targets, vocab_size=9)
    with pytest.raises(ValueError, match="chunk_tokens=0"):
        linear_token_statistics(hidden, torch.randn(9, 5), targets, vocab_size=9, chunk_tokens=0)
    with pytest.raises(ValueError, match=r"row 1 \(index \(1,\) of \(2,\)\): a logit is NaN"):
        linear_token_statistics(torch.tensor([[1.0], [math.nan]]), torch.ones(3, 1), targets, vocab_size=3)


def test_second_derivatives_are_refused() -> None:
    hidden, weight = torch.randn(2, 5, requires_grad=True), torch.randn(9, 5)
    entropy = linear_token_statistics(hidden, weight, torch.zeros(2, dtype=torch.int64), vocab_size=9).entropy
    (grad,) = torch.autograd.grad(entropy.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        grad.sum().backward()


def run_sharded(
    dtype: torch.dtype, clamp: float | None, masked: bool, sequence_parallel: bool, chunk_tokens: int | None, gathered: int
) -> tuple[dict[str, int], dict[str, int]]:
    group = start_group()
    set_narrow_tiles(setattr)
    sequence_chunks.CHUNK_TOKENS = gathered
    case = Case(dtype, clamp, masked)
    reference, grad_hidden, grad_weight = case.reference()
    hidden = (shard_of(case.hidden, group, 0) if sequence_parallel else case.hidden.clone()).requires_grad_()
    weight = shard_of(case.weight, group, 0).requires_grad_()
    with counted_collectives() as forward:
        statistics = linear_token_statistics(
            hidden,
            weight,
            case.targets,
            tp_group=group,
            sequence_parallel=sequence_parallel,
            chunk_tokens=chunk_tokens,
            validate=False,
            **case.arguments,
        )
    check_results(statistics, reference)
    assert all(x is None or equal_on_all_ranks(x, group) for x in statistics)
    with counted_collectives() as backward:
        weighted_sum(statistics, case.weights_3N).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    wanted_hidden = shard_of(grad_hidden, group, 0) if sequence_parallel else grad_hidden
    assert_close(hidden.grad, wanted_hidden, *case.tolerance(), what="gradient of hidden")
    assert_close(weight.grad, shard_of(grad_weight, group, 0), *case.tolerance(), what="gradient of weight")
    return dict(forward), dict(backward)


@pytest.mark.distributed
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("world_size", "dtype", "clamp"),
    [(2, torch.float32, None), (4, torch.bfloat16, 0.0), (2, torch.float32, 0.4), (2, torch.bfloat16, 0.4), (4, torch.float32, 0.4)],
)
def test_sharded_weight(world_size: int, dtype: torch.dtype, clamp: float | None, masked: bool, sequence_parallel: bool) -> None:
    chunk_tokens = 7 if clamp else None
    counts = run_ranks(run_sharded, world_size, dtype, clamp, masked, sequence_parallel, chunk_tokens, sequence_chunks.CHUNK_TOKENS)
    assert counts == [collectives([tokens_inside(masked)], dtype, clamp, sequence_parallel)] * world_size


def tokens_inside(masked: bool) -> int:
    return int(Case(torch.float32, None, True).arguments["mask"].sum()) if masked else SEQUENCE * BATCH


def collectives(
    chunks: list[int], dtype: torch.dtype, clamp: float | None, sequence_parallel: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """(forward, backward) for chunks of so many unmasked tokens, selecting from 7 tokens at a time."""
    selections = sum(math.ceil(tokens / 7) for tokens in chunks) if clamp else 0
    bytes_per_logit = torch.empty((), dtype=dtype).element_size()
    reduces, gathers = 2 + selections * bytes_per_logit, selections + sequence_parallel * len(chunks)
    forward = {"all_reduce": reduces} | ({"all_gather": gathers} if gathers else {})
    backward = {"all_gather": len(chunks), "reduce_scatter": len(chunks)} if sequence_parallel else {"all_reduce": 1}
    return forward, backward


@pytest.mark.distributed
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("world_size", "dtype", "clamp"),
    [(2, torch.float32, None), (4, torch.float32, 0.0), (2, torch.float32, 0.4), (2, torch.bfloat16, 0.4)],
)
def test_sequence_in_chunks(world_size: int, dtype: torch.dtype, clamp: float | None, masked: bool) -> None:
    """Three chunks, or as many as a rank has positions: each is gathered, and its gradient scattered, on its own."""
    positions = SEQUENCE // world_size
    count = min(3, positions)
    mask = Case(dtype, clamp, masked).arguments["mask"]
    inside_WLB = torch.ones(world_size, positions, BATCH) if mask is None else mask.view(world_size, positions, BATCH)
    chunks = [int(inside_WLB[:, positions * i // count : positions * (i + 1) // count].sum()) for i in range(count)]
    assert min(chunks) > 0
    counts = run_ranks(run_sharded, world_size, dtype, clamp, masked, True, 7 if clamp else None, SEQUENCE * BATCH // 3)
    assert counts == [collectives(chunks, dtype, clamp, True)] * world_size


def refuse_in_chunks() -> tuple[str, dict[str, int]]:
    """(the error that names the first bad row, the collectives of a sequence of which only the last chunk is unmasked)."""
    group = start_group()
    sequence_chunks.CHUNK_TOKENS = 4
    hidden_TH, weight = torch.ones(8, 1), torch.ones(10, 1)
    targets_T = torch.zeros(8, dtype=torch.int64)
    bad_T = targets_T.clone()
    bad_T[[3, 4]] = 20  # row 4 is in the first chunk, row 3 in the second
    options: dict[str, Any] = {"tp_group": group, "vocab_size": 20, "sequence_parallel": True}
    hidden_TH, weight = shard_of(hidden_TH, group, 0).requires_grad_(), weight.requires_grad_()
    with pytest.raises(ValueError, match="row") as error:
        linear_token_statistics(hidden_TH, weight, bad_T, mask=torch.arange(8) != 0, **options)
    with counted_collectives() as counts:
        statistics = linear_token_statistics(hidden_TH, weight, targets_T, mask=torch.arange(8) == 7, validate=False, **options)
        (statistics.log_prob.sum() + hidden_TH.sum()).backward()
    assert statistics.log_prob.detach().tolist() == pytest.approx([0.0] * 7 + [-math.log(20)])
    assert hidden_TH.grad is not None
    assert hidden_TH.grad.flatten().tolist() == pytest.approx([1.0] * 4)  # all logits equal: log p does not depend on hidden
    return str(error.value), dict(counts)


@pytest.mark.distributed
def test_chunks_outside_the_mask_cost_nothing_and_errors_name_the_first_row() -> None:
    for message, counts in run_ranks(refuse_in_chunks, 2):
        assert message == "row 3 (index (3,) of (8,)): the target is not a token id (target 20, vocabulary 20)"
        assert counts == {"all_reduce": 2, "all_gather": 2, "reduce_scatter": 1}


@pytest.mark.distributed
@pytest.mark.parametrize("fused", [False, True])
def test_a_half_precision_weight_is_added_up_over_chunks_only_in_main_grad(fused: bool) -> None:
    """Else its gradient's float32 sum would take twice the weight's memory: the sequence is then gathered as a whole."""
    counts = run_ranks(count_gathers, 2, fused)
    assert counts == [3 if fused else 1] * 2


def count_gathers(fused: bool) -> int:
    group = start_group()
    sequence_chunks.CHUNK_TOKENS = SEQUENCE * BATCH // 3
    case = Case(torch.bfloat16, None, False)
    reference, _, grad_weight = case.reference()
    weight = torch.nn.Parameter(shard_of(case.weight, group, 0))
    weight.main_grad, weight.grad_added_to_main_grad = torch.zeros(weight.shape), False  # type: ignore[attr-defined, assignment]
    hidden = shard_of(case.hidden, group, 0).requires_grad_()
    statistics = linear_token_statistics(
        hidden,
        weight,
        case.targets,
        tp_group=group,
        sequence_parallel=True,
        validate=False,
        accumulate_main_grad=fused,
        **case.arguments,
    )
    check_results(statistics, reference)
    with counted_collectives() as counts:
        weighted_sum(statistics, case.weights_3N).backward()
    got = weight.main_grad if fused else weight.grad
    assert isinstance(got, Tensor)
    assert_close(got, shard_of(grad_weight, group, 0), *case.tolerance())
    return counts["all_gather"]
