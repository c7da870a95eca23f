# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""A program's 256 counts of digits: zeroed, added to block by block, read.

From 3.8 on Triton makes of tl.histogram one atomic addition in shared memory a column. Triton 3.4 to 3.7 make votes of it: for each
column 8 ballots of the warp, one a bit, and 8 population counts (at a quarter of the rate), one for each of the 8 bins that a
thread keeps: 65 instructions a column, five times what the memory leaves time for. With those versions the counts are kept
here by the same additions, in assembly: 256 numbers of static shared memory, beside the dynamic one that Triton hands out. All
threads of a program come by each of these functions together. The compiler may repeat a read, which it wants in two
layouts, but no addition: nobody uses what that returns.

The whole kernel that counts (bfloat16, blocks of 4096, first round) has 600 instructions compiled by Triton 3.7.1, 2504 with its
tl.histogram; 576 compiled by Triton 3.9. tests/entropy/test_kernel_compilation.py runs the assembly on a machine of its own.
"""

import triton
import triton.language as tl

from megatron_entropic.entropy.triton.common import PTX

COUNTS_BY_VOTES = (3, 8)
"""The version of Triton before which tl.histogram counts by votes."""

IN_ASSEMBLY = tl.constexpr(bool(PTX.value) and tuple(int(part) for part in triton.__version__.split(".")[:2]) < COUNTS_BY_VOTES)


@triton.jit
def counts_to_zero():
    """256 zeros: a tensor, or the address of a program's counts in shared memory."""
    if IN_ASSEMBLY:
        # not in braces: the name is the function's, for the one address that this returns
        counts = tl.inline_asm_elementwise(
            ".shared .align 4 .b32 digit_counts[256];\n mov.u32 $0, digit_counts;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
        )
        address = counts + 4 * tl.arange(0, 256)
        tl.inline_asm_elementwise("st.shared.u32 [$1], 0;\n mov.u32 $0, 0;", "=r,r", [address], dtype=tl.int32, is_pure=False, pack=1)
        tl.debug_barrier()
        return counts
    else:
        return tl.zeros((256,), tl.int32)


@triton.jit
def add_to_counts(counts, digit, counted):
    """Counts with those of a block's `digit` that are `counted` (None: all)."""
    if IN_ASSEMBLY:
        address = counts + 4 * digit
        if counted is None:
            tl.inline_asm_elementwise(
                "red.shared.add.u32 [$1], 1;\n mov.u32 $0, 0;", "=r,r", [address], dtype=tl.int32, is_pure=False, pack=1
            )
        else:
            tl.inline_asm_elementwise(
                "{ .reg .pred counted; setp.ne.s32 counted, $2, 0;\n @counted red.shared.add.u32 [$1], 1;\n mov.u32 $0, 0; }",
                "=r,r,r",
                [address, counted.to(tl.int32)],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )
        return counts
    elif counted is None:
        return counts + tl.histogram(digit, 256)
    else:
        return counts + tl.histogram(digit, 256, mask=counted)


@triton.jit
def read_counts(counts):
    """[256] int32, when all threads have added theirs."""
    if IN_ASSEMBLY:
        tl.debug_barrier()
        address = counts + 4 * tl.arange(0, 256)
        return tl.inline_asm_elementwise("ld.shared.u32 $0, [$1];", "=r,r", [address], dtype=tl.int32, is_pure=False, pack=1)
    else:
        return counts
