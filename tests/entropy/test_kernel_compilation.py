"""The Triton kernels compile for a GPU (compute capability 9.0) where there is none: Triton brings the assembler along."""

from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

FLOATS = "max sums squares part_squares log_sum entropy kept_log_sum kept_entropy for_log_prob for_entropy for_kept part_max part_sums"
INTEGERS = "tie_end counts quota ties local wanted position"
KEY_TYPES = {"bf16": "*i16", "fp16": "*i16", "fp32": "*i32"}
ALIGNED = ("row_stride", "span", "width")
CLAMP_POINTERS = ("key_ptr", "tie_end_ptr", "kept_log_sum_ptr", "kept_entropy_ptr", "for_kept_ptr")


def ptx_of(kernel: Any, dtype: str, constants: dict[str, Any], options: dict[str, Any]) -> str:
    """PTX of a kernel as the launcher would compile it for aligned logits of `dtype`; raises when it does not assemble."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {name + "_ptr": "*fp32" for name in FLOATS.split()} | {name + "_ptr": "*i32" for name in INTEGERS.split()}
    types |= dict.fromkeys(("logits_ptr", "out_ptr"), "*" + dtype) | dict.fromkeys(("index_ptr", "target_ptr"), "*i64")
    types |= dict.fromkeys(("key_ptr", "prefix_ptr"), KEY_TYPES[dtype]) | {"inverse_temperature": "fp32"}
    names = kernel.arg_names
    given = {name: value for name, value in constants.items() if name in names}
    signature = {name: "constexpr" if name in given else types.get(name, "i32") for name in names}
    aligned = [i for i, name in enumerate(names) if signature[name][0] == "*" or (name in ALIGNED and name not in given)]
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in given.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.asm["cubin"]
    ptx: str = compiled.asm["ptx"]
    return ptx


@pytest.mark.slow
@pytest.mark.parametrize("dtype", KEY_TYPES)
@pytest.mark.parametrize("block", [128, 4096])
def test_kernels_compile_with_16_byte_accesses(dtype: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from megatron_entropic.entropy.triton import common, selection
    from megatron_entropic.entropy.triton import gradient as gradients
    from megatron_entropic.entropy.triton import moments as kernels

    options = common.options(block)
    shift = 24 if dtype == "fp32" else 8
    sizes = {"BLOCK": block, "PER": 4 if dtype == "fp32" else 8, "column_stride": 1}
    plain = {**sizes, **dict.fromkeys(CLAMP_POINTERS), "index_ptr": None, "position_ptr": None}
    for constants in (plain, sizes):
        for without in ({"ENTROPY": True}, {"ENTROPY": True, "squares_ptr": None}, {"ENTROPY": False, "squares_ptr": None}):
            moments = ptx_of(kernels._moments, dtype, {**constants, **without}, options)
            assert "ex2.approx.ftz.f32" in moments
            if block == 4096:
                assert "ld.global.v4.b32" in moments
        gradient = ptx_of(gradients._gradient, dtype, constants, options)
        if block == 4096:
            assert "ld.global.v4.b32" in gradient
            assert "st.global.v4.b32" in gradient
    for first in (True, False):
        count = ptx_of(selection._count_digits, dtype, {**sizes, "SHIFT": shift if first else 0, "FIRST": first}, options)
        if block == 4096:
            assert "ld.global.v4.b32" in count
        ptx_of(selection._walk_down, dtype, {"FIRST": first}, {"num_warps": 1})
    ptx_of(selection._find_tie_end, dtype, sizes, options)
    for without in ({}, {"part_squares_ptr": None, "squares_ptr": None}):
        ptx_of(kernels._join_spans, dtype, {"SUMS": 5, "SPLITS": 8, "ENTROPY": True, **without}, {"num_warps": 1})
