"""What the output layer asks of a GPU: few large products into aligned memory, nothing of the weight's size beside main_grad."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_entropic.entropy import device_path, gradient_accumulation
from tests.entropy.output_layer_products import H100_GPU_BYTES, Counts, Estimate, Product, count, estimate

TOKENS = 16_384
MODELS = {"1.5B": (151_936, 1536), "8B": (128_256, 4096), "70B, TP 8": (16_032, 8192), "odd": (50_257, 4096)}
"""Columns of a rank and hidden size: Qwen2.5-1.5B, Llama-3.1-8B, Llama-3.1-70B, and a vocabulary that nothing divides."""
TILES = {"1.5B": (19, 5), "8B": (16, 4), "70B, TP 8": (2, 1), "odd": (7, 2)}
"""Without and with a clamp."""


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_products_are_few_and_large(model: str, clamp: bool) -> None:
    columns, hidden_size = MODELS[model]
    forward, backward = count(TOKENS, columns, hidden_size, clamp=clamp, gpu_bytes=H100_GPU_BYTES)
    tiles = TILES[model][clamp]
    assert (len(forward.products), len(backward.products)) == (tiles, 3 * tiles)
    assert forward.operations + backward.operations <= 40 * tiles + 50
    flops = sum(product.flops for product in forward.products + backward.products)
    assert flops == 4 * 2 * TOKENS * columns * hidden_size
    for logits in forward.products:
        assert logits.stride % 64 == 0
        assert logits.columns <= logits.stride < logits.columns + 64
        assert 2 * logits.rows * logits.stride <= (2**30 if clamp else 2**28)
    least_ms = 1e3 * flops / 989e12
    assert estimate(TOKENS, columns, hidden_size, clamp=clamp).products_ms == pytest.approx(least_ms), "some wait for memory"


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_gradients_are_added_where_they_are(model: str, clamp: bool) -> None:
    """No product is made beside what it is added to, and there is no gradient of the weight but main_grad."""
    columns, hidden_size = MODELS[model]
    _, backward = count(TOKENS, columns, hidden_size, clamp=clamp, gpu_bytes=H100_GPU_BYTES)
    of_weight = [
        product for product in backward.products if product.inner <= TOKENS and product.columns == hidden_size and product.added
    ]
    assert of_weight
    assert all(product.dtype == torch.float32 for product in of_weight)
    tile_bytes = max(2 * logits.rows * logits.stride for logits in backward.products if not logits.added)
    assert backward.largest <= max(tile_bytes, 4 * TOKENS * hidden_size)


def test_a_cpu_keeps_its_tiles() -> None:
    forward, _ = count(TOKENS, 151_936, 1536, clamp=False, gpu_bytes=None)
    assert [product.columns for product in forward.products] == [1024] * 148 + [384]
    assert all(product.stride == product.columns for product in forward.products)
    forward, _ = count(TOKENS, 151_936, 1536, clamp=True, gpu_bytes=None)
    assert [product.rows for product in forward.products] == [441] * 37 + [67]


def test_products_that_cannot_be_added_in_one_pass_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.8 to 2.12: a float32 result for half-precision operands, but not on top of a float32 matrix."""
    monkeypatch.setattr(gradient_accumulation, "multiplies_into_float32", lambda operand: True)
    monkeypatch.setattr(gradient_accumulation, "PIECE_BYTES", 4 * 6 * 5)
    assert not device_path.adds_into_float32(torch.empty(1))
    made: list[int] = []

    def mm(left: Tensor, right: Tensor, out_dtype: torch.dtype) -> Tensor:  # a CPU's torch.mm does without out_dtype
        made.append(len(left))
        return left.to(out_dtype) @ right.to(out_dtype)

    left, right, total = torch.randn(13, 7).bfloat16(), torch.randn(7, 6).bfloat16(), torch.ones(13, 6)
    wanted = total + left.float() @ right.float()
    monkeypatch.setattr(torch, "mm", mm)
    gradient_accumulation._add_product(total, left, right)
    assert made == [5, 5, 3]
    assert torch.allclose(total, wanted, rtol=1e-6, atol=1e-6)


def test_the_estimates_of_the_documentation() -> None:
    """docs/performance.md, "The output layer on an H100", line by line."""
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    for model in ("1.5B", "8B", "70B, TP 8"):
        for clamp in (False, True):
            row = estimate_row(model, clamp, estimate(TOKENS, *MODELS[model], clamp=clamp))
            assert row in page, f"missing: {row}"


def estimate_row(model: str, clamp: bool, on_gpu: Estimate) -> str:
    as_cpu = estimate(TOKENS, *MODELS[model], clamp=clamp, gpu_bytes=None)
    cells = [model, "0.4" if clamp else "", f"{on_gpu.tiles} / {as_cpu.tiles}", f"{on_gpu.operations} / {as_cpu.operations}"]
    cells += [f"{on_gpu.products_gb:.0f} / {as_cpu.products_gb:.0f}", f"{on_gpu.four_products_ms:.1f}"]
    cells += [f"{on_gpu.products_ms:.1f} / {as_cpu.products_ms:.1f}", f"{on_gpu.kernels_ms:.1f}"]
    return "| " + " | ".join(cells) + " |"


def test_the_counts_themselves() -> None:
    with Counts() as counts:
        total = torch.zeros(3, 5)
        product = torch.mm(torch.zeros(3, 4, dtype=torch.bfloat16), torch.zeros(4, 5, dtype=torch.bfloat16))
    assert counts.products == [Product(3, 4, 5, False, torch.bfloat16, 5)]
    assert (counts.products[0].flops, counts.products[0].bytes) == (120, 2 * (12 + 20 + 15))
    assert counts.largest == total.nbytes == 2 * product.nbytes
