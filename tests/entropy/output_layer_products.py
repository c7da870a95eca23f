"""Matrix products of the output layer as a GPU would be asked for them, counted without one: tensors that have only shapes.

Shapes: T tokens, V this rank's columns, H hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_entropic.entropy import gradient_accumulation, linear_head
from megatron_entropic.entropy.linear_head import Head
from megatron_entropic.entropy.records import Moments, Threshold, UpstreamGradients
from megatron_entropic.entropy.sequence_chunks import HiddenRows
from megatron_entropic.entropy.shard import ShardRows, VocabShard
from megatron_entropic.entropy.token_statistics import Request

VIEWS = {"view", "slice", "t", "transpose", "detach", "select", "alias", "_unsafe_view", "expand", "unsqueeze", "squeeze"}
MEMORY = {"empty", "new_empty"}


class Product(NamedTuple):
    """[rows, inner] @ [inner, columns], into memory that is `added` to; `stride`: elements from row to row of the result."""

    rows: int
    inner: int
    columns: int
    added: bool
    dtype: torch.dtype
    stride: int

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inner * self.columns

    @property
    def bytes(self) -> int:
        """Operands read once in bfloat16, the result written, and read where it is added to."""
        result = self.rows * self.columns * self.dtype.itemsize
        return 2 * (self.rows + self.columns) * self.inner + result * (2 if self.added else 1)


class Counts(TorchDispatchMode):
    """The products and the number of other operations that are not views, and the bytes of the largest tensor made."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []
        self.operations = 0
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        added = name.startswith("addmm")
        if func is torch.ops.aten.addmm.dtype_out:  # a GPU's alone
            assert args[0] is kwargs["out"], "anything else would be copied"
            result = kwargs["out"]
        else:
            result = func(*args, **kwargs)
        if added or name == "mm":
            left, right = args[1:3] if added else args[:2]
            assert left.dtype == right.dtype == torch.bfloat16
            self.products.append(Product(*left.shape, right.shape[1], added, result.dtype, result.stride(0)))
        elif isinstance(result, Tensor) and name not in VIEWS | MEMORY:
            self.operations += 1
        if isinstance(result, Tensor) and "out" not in kwargs and name not in VIEWS and name[-1] != "_":
            self.largest = max(self.largest, result.nbytes)
        return result


@contextmanager
def fake_gpu(gpu_bytes: int | None) -> Iterator[None]:
    """Inside, tensors on "meta", which have no memory, are worked on as on a GPU of so many bytes; the kernels do nothing."""

    def made(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def moments(rows: ShardRows, column_T: Tensor, temperature: float, threshold: Threshold | None, **_: bool) -> Moments:
        return Moments(made(len(rows)), made(3 if threshold is None else 5, len(rows)), None)

    def selection(rows: ShardRows, count: int, shard: VocabShard) -> Threshold:
        return Threshold(made(len(rows), dtype=torch.int16), made(len(rows), dtype=torch.int32))

    with (
        mock.patch.object(torch, "autocast", return_value=nullcontext()),  # knows no "meta"
        mock.patch.object(linear_head, "memory_of_gpu", return_value=gpu_bytes),
        mock.patch.object(linear_head, "local_moments", moments),
        mock.patch.object(linear_head, "select_largest", selection),
        mock.patch.object(linear_head, "write_logits_gradient"),
        mock.patch.object(gradient_accumulation, "adds_into_float32", return_value=True),
    ):
        yield


def count(tokens: int, columns: int, hidden_size: int, *, clamp: bool, gpu_bytes: int | None) -> tuple[Counts, Counts]:
    """(forward, backward) of bfloat16 hidden states and weight, whose gradient goes to a float32 main_grad."""
    shard = VocabShard.of(columns, columns, None)
    request = Request(shard, 1.0, columns * 3 // 5 if clamp else None, validate=False)
    with fake_gpu(gpu_bytes), torch.no_grad():
        targets_T = torch.zeros(tokens, dtype=torch.int64, device="meta")
        hidden_TH = torch.empty(tokens, hidden_size, dtype=torch.bfloat16, device="meta")
        weight_VH = torch.empty(columns, hidden_size, dtype=torch.bfloat16, device="meta")
        weight_VH.main_grad = torch.empty(columns, hidden_size, device="meta")  # type: ignore[attr-defined]
        head = Head(request, HiddenRows.of(shard, targets_T, None, sharded=False, chunked=True), None, True)
        with Counts() as forward:
            measured = head.measure(hidden_TH, weight_VH, targets_T)
        ones_T = torch.ones(tokens, device="meta")
        upstream = UpstreamGradients(ones_T, ones_T, ones_T if clamp else None)
        with Counts() as backward:
            head.gradients(hidden_TH, weight_VH, targets_T, measured.scalars, measured.threshold, upstream, (True, True))
    return forward, backward


H100_FLOPS, H100_BYTES, H100_GPU_BYTES = 989e12, 3.35e12, int(79.1 * 2**30)
"""Per second, of the data sheet (dense bfloat16; HBM3), and the memory that the driver reports."""


class Estimate(NamedTuple):
    """An H100's least time for forward and backward: each product by its operations or bytes, the kernels by their bytes."""

    tiles: int
    operations: int
    products_gb: float
    products_ms: float
    kernels_ms: float
    four_products_ms: float
    """Of forward, its repetition, and the two gradients, each as one product."""


def estimate(tokens: int, columns: int, hidden_size: int, *, clamp: bool, gpu_bytes: int | None = H100_GPU_BYTES) -> Estimate:
    forward, backward = count(tokens, columns, hidden_size, clamp=clamp, gpu_bytes=gpu_bytes)
    products = forward.products + backward.products
    passes = 5.5 if clamp else 3  # over the logits: entropy/triton/selection.py
    return Estimate(
        len(forward.products),
        forward.operations + backward.operations,
        sum(product.bytes for product in products) / 1e9,
        1e3 * sum(max(product.flops / H100_FLOPS, product.bytes / H100_BYTES) for product in products),
        1e3 * passes * 2 * tokens * columns / H100_BYTES,
        1e3 * 4 * 2 * tokens * columns * hidden_size / H100_FLOPS,
    )
