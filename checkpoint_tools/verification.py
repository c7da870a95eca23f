"""Two Hugging Face directories, tensor by tensor."""

from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_entropic.hf.files import HFReader

SHOWN = 10


@dataclass(frozen=True)
class Difference:
    """How one tensor differs: the largest |a - b|, and |a - b| / |b| in the Euclidean norm."""

    name: str
    largest: float
    relative: float


@dataclass(frozen=True)
class Comparison:
    """`problems` are tensors that cannot be compared; `differences` those that can and are not bit-identical."""

    tensors: int
    problems: list[str]
    differences: list[Difference]

    @property
    def equal(self) -> bool:
        return not self.problems and not self.differences

    def __str__(self) -> str:
        if self.equal:
            return f"equal: all {self.tensors} tensors are bit-identical"
        lines = [f"not equal: {len(self.differences)} of {self.tensors} tensors differ, {len(self.problems)} cannot be compared"]
        lines += [f"  {problem}" for problem in self.problems]
        worst = sorted(self.differences, key=lambda difference: -difference.relative)
        lines += [f"  {d.name}: largest difference {d.largest:.3e}, relative {d.relative:.3e}" for d in worst[:SHOWN]]
        if len(worst) > SHOWN:
            lines.append(f"  and {len(worst) - SHOWN} more that differ less")
        return "\n".join(lines)


def compare(a: Path, b: Path) -> Comparison:
    """Compares all tensors of `a` and `b`, one at a time. Raises CheckpointError naming a file that cannot be read."""
    problems: list[str] = []
    differences: list[Difference] = []
    with HFReader(a) as first, HFReader(b) as second:
        names = dict.fromkeys([*first.names(), *second.names()])
        for name in names:
            if missing := [str(path) for path, reader in ((a, first), (b, second)) if name not in reader.names()]:
                problems.append(f"{name}: not in {missing[0]}")
            elif first.shape(name) != second.shape(name) or first.dtype(name) != second.dtype(name):
                problems.append(
                    f"{name}: {list(first.shape(name))} {first.dtype(name)} against {list(second.shape(name))} {second.dtype(name)}"
                )
            elif not torch.equal(x := first.read(name), y := second.read(name)):
                distance = (x.double() - y.double()).abs()
                relative = distance.norm() / y.double().norm().clamp(min=torch.finfo(torch.float64).tiny)
                differences.append(Difference(name, distance.max().item(), relative.item()))
    return Comparison(len(names), problems, differences)
