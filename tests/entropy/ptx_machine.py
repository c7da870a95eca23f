"""A machine for the PTX of one simple program: all its threads step by step, for kernels whose branches all threads take together.

Enough of the language for the kernel that counts digits (entropy/triton/selection.py); what it does not know, it refuses.
Between two barriers threads of a GPU run in any order; here every instruction is done by all of them before the next one, so the
result says that the instructions are right, and the order of barriers is for a test to look at.

Shapes: B threads, M bytes of memory.
"""

import operator
import re
from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray
OPERATIONS: dict[str, Callable[..., Array]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "mad": lambda a, b, c: a * b + c,
    "div": lambda a, b: (np.sign(a) * np.sign(b)) * (abs(a) // abs(b)),
    "min": np.minimum,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "shl": operator.lshift,
    "mov": lambda a: a,
    "selp": lambda a, b, p: np.where(p, a, b),
}
COMPARISONS = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}
ACCESS = re.compile(r"(ld|st|red|atom)\.(global|shared|param)[\w.]*?(?:\.v([24]))?\.([bsu])(8|16|32|64) (.*)")


class Machine:
    """`memory_M` is the device's, from address 0; `parameters` are numbers or addresses in it."""

    def __init__(self, ptx: str, memory_M: Array, parameters: Sequence[int]) -> None:
        found = re.search(r"\.reqntid (\d+)\s*\{(.*?)\n\s*ret;", ptx, re.DOTALL)
        assert found is not None
        self.threads = int(found.group(1))
        text = re.sub(r"//[^\n]*", "", found.group(2)).replace("\t", " ")
        text = re.sub(r"(\$L\w+):", r"\1:;", re.sub(r"^\s*\.(loc|file|reg)[^\n]*$", "", text, flags=re.MULTILINE))
        text = re.sub(r"\{\s*\.reg \.pred counted;|;\s*\}", ";", text)  # the braces of assembly around one predicate
        self.lines = [re.sub(r"\s+", " ", line).strip() for line in text.split(";")]
        self.lines = [line for line in self.lines if line and not line.startswith(".")]
        self.labels = {line[:-1]: number for number, line in enumerate(self.lines) if line.endswith(":")}
        self.memories = {"global": memory_M, "shared": np.zeros(1024, dtype=np.uint8)}
        self.memories["shared"][:] = 0xA5  # nobody zeroes it before
        self.parameters = parameters

    def run(self, program: int) -> None:
        """One program of the grid."""
        self.values: dict[str, Array] = {
            "%tid.x": np.arange(self.threads),
            "%ctaid.x": self._all(program),
            "digit_counts": self._all(0),
        }
        number = 0
        while number < len(self.lines):
            line = self.lines[number]
            number += 1
            guard = self._all(1).astype(bool)
            if line[0] == "@":
                name, line = line[1:].split(" ", 1)
                guard = self.values[name.lstrip("!")] ^ (name[0] == "!")
            if line.startswith("bra"):
                assert guard.all() or not guard.any(), "threads part"
                number = self.labels[line.split()[-1]] if guard[0] else number
            elif not line.endswith(":") and not line.startswith("bar.sync"):
                self._step(line, guard)

    def _all(self, number: int) -> Array:
        return np.full(self.threads, number, dtype=np.int64)

    def _value(self, name: str) -> Array:
        return self.values[name] if name in self.values else self._all(int(name, 0))

    def _step(self, line: str, guard_B: Array) -> None:
        if access := ACCESS.fullmatch(line):
            self._access(access, guard_B)
            return
        name, rest = line.split(" ", 1)
        verb, *kinds = name.split(".")
        result, *operands = rest.split(", ")
        values = [self._value(operand) for operand in operands]
        if verb == "setp":
            self.values[result] = COMPARISONS[kinds[0]](*values)
            return
        if verb in ("shr", "cvt", "bfe"):
            made = _read_as(values[0], kinds[-1]) >> (0 if verb == "cvt" else values[1])
            if verb == "bfe":  # some bits, the highest of which is the sign of a signed number
                made = made & ((1 << values[2]) - 1)
                made = made - (made >> (values[2] - 1) << values[2]) if kinds[-1] == "s32" else made
        else:
            made = OPERATIONS[verb](*values)
        wide = "wide" in kinds or kinds[0].endswith("64")
        assert guard_B.all(), line
        self.values[result] = made if kinds[-1] == "pred" or wide else made.astype(np.int32).astype(np.int64)

    def _access(self, access: re.Match[str], guard_B: Array) -> None:
        verb, space, vector, kind, bits, rest = access.groups()
        count, dtype = int(vector or 1), np.dtype(f"{'u' if kind == 'u' and verb == 'ld' else ''}int{bits}")
        bracket = re.search(r"\[ ?(\S+?)(?: ?\+ ?(\d+))? ?\]", rest)
        assert bracket is not None
        results = re.findall(r"%\w+", rest[: bracket.start()])
        if space == "param":
            self.values[results[0]] = self._all(self.parameters[int(bracket.group(1).rsplit("_", 1)[1])])
            return
        element_B = (self.values[bracket.group(1)] + int(bracket.group(2) or 0)) // dtype.itemsize
        memory = self.memories[space].view(dtype)
        if verb == "ld":
            assert len(results) == count
            for position, result in enumerate(results):
                before = self.values.get(result, self._all(0))
                self.values[result] = np.where(guard_B, memory[np.where(guard_B, element_B + position, 0)].astype(np.int64), before)
            return
        value_B = self._value(rest[bracket.end() :].strip(", "))
        if verb == "st":
            memory[element_B[guard_B]] = value_B[guard_B]
        else:
            np.add.at(memory, element_B[guard_B], value_B[guard_B].astype(dtype))


def _read_as(value_B: Array, kind: str) -> Array:
    """The lowest bits as a number of a kind such as u32 or s16; kinds of bits alone (b32) as it is."""
    bits = int(kind[1:])
    unsigned_B = value_B & ((1 << bits) - 1) if bits < 64 else value_B
    if kind[0] == "u":
        return unsigned_B
    return unsigned_B - ((unsigned_B >> (bits - 1)) << bits) if kind[0] == "s" and bits < 64 else value_B
