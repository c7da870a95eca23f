"""The Triton kernels compiled for compute capability 9.0, where there is no GPU, and what they take of one, as JSON lines.

    python -m tests.entropy.compiled_kernels bf16 4096          what a run launches
    python -m tests.entropy.compiled_kernels bf16 4096 --all    with every option

Triton brings the assembler and the disassembler along. In a process of its own, with whichever Triton PYTHONPATH finds first.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from megatron_entropic.entropy.triton import common, selection
from megatron_entropic.entropy.triton import gradient as gradients
from megatron_entropic.entropy.triton import moments as kernels

FLOATS = "max sums squares part_squares log_sum entropy kept_log_sum kept_entropy for_log_prob for_entropy for_kept part_max part_sums"
INTEGERS = "tie_end counts quota ties local wanted position"
KEY_TYPES = {"bf16": "*i16", "fp16": "*i16", "fp32": "*i32"}
ALIGNED = ("row_stride", "span", "width")
CLAMP_POINTERS = ("key_ptr", "tie_end_ptr", "kept_log_sum_ptr", "kept_entropy_ptr", "for_kept_ptr")


class Case(NamedTuple):
    """A kernel with the constants that one launch gives it."""

    name: str
    kernel: Any
    constants: dict[str, Any]
    options: dict[str, Any]


def cases(dtype: str, block: int, *, every: bool) -> Iterator[Case]:
    """What a run launches on logits of `dtype`: with and without a clamp; `every`: also without the entropy and with the squares."""
    options, one_warp = common.options(block), {"num_warps": 1}
    sizes = {"BLOCK": block, "PER": 4 if dtype == "fp32" else 8, "column_stride": 1}
    plain = {**sizes, **dict.fromkeys(CLAMP_POINTERS), "index_ptr": None, "position_ptr": None}
    no_squares = {"part_squares_ptr": None, "squares_ptr": None}
    for clamp, constants in (("", plain), (", clamp", sizes)):
        yield Case(f"moments{clamp}", kernels._moments, {**constants, **no_squares, "ENTROPY": True}, options)
        if every:
            yield Case(f"moments{clamp}, squares", kernels._moments, {**constants, "ENTROPY": True}, options)
            yield Case(f"moments{clamp}, log-prob", kernels._moments, {**constants, **no_squares, "ENTROPY": False}, options)
        yield Case(f"gradient{clamp}", gradients._gradient, constants, options)
    for first, shift in ((True, 24 if dtype == "fp32" else 8), (False, 0)):
        name = "first" if first else "later"
        yield Case(f"count, {name}", selection._count_digits, {**sizes, "SHIFT": shift, "FIRST": first}, options)
        yield Case(f"walk, {name}", selection._walk_down, {"FIRST": first}, one_warp)
    yield Case("ties", selection._find_tie_end, sizes, options)
    join = {"SUMS": 5, "SPLITS": 8, "ENTROPY": True}
    yield Case("join", kernels._join_spans, {**join, **no_squares}, one_warp)
    if every:
        yield Case("join, squares", kernels._join_spans, join, one_warp)


def compiled(case: Case, dtype: str) -> Any:
    """A kernel as the launcher would compile it for aligned logits of `dtype`; raises when it does not assemble."""
    types = {name + "_ptr": "*fp32" for name in FLOATS.split()} | {name + "_ptr": "*i32" for name in INTEGERS.split()}
    types |= dict.fromkeys(("logits_ptr", "out_ptr"), "*" + dtype) | dict.fromkeys(("index_ptr", "target_ptr"), "*i64")
    types |= dict.fromkeys(("key_ptr", "prefix_ptr"), KEY_TYPES[dtype]) | {"inverse_temperature": "fp32"}
    names = case.kernel.arg_names
    given = {name: value for name, value in case.constants.items() if name in names}
    signature = {name: "constexpr" if name in given else types.get(name, "i32") for name in names}
    aligned = [i for i, name in enumerate(names) if signature[name][0] == "*" or (name in ALIGNED and name not in given)]
    source = ASTSource(
        case.kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in given.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=case.options)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, bytes of its stack and of spilled registers, and machine instructions of a kernel."""
    programs = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run([programs / name, option, file.name], capture_output=True, text=True, check=True).stdout
            for name, option in (("cuobjdump", "--dump-resource-usage"), ("nvdisasm", "-c"))
        )
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found is not None, usage
    registers, stack, local = map(int, found.groups())
    spills = len(re.findall(r"\b(?:STL|LDL)\b", code))
    instructions = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.MULTILINE))
    return {"registers": registers, "stack": stack, "local": local, "spills": spills, "instructions": instructions}


def main(dtype: str, block: str, *options: str) -> None:
    print(json.dumps({"triton": triton.__version__}))
    for case in cases(dtype, int(block), every="--all" in options):
        kernel = compiled(case, dtype)
        print(json.dumps({"name": case.name, "ptx": kernel.asm["ptx"], **resources(kernel.asm["cubin"])}))


if __name__ == "__main__":
    main(*sys.argv[1:])
