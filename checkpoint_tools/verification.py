"""Two checkpoints of either kind, tensor by tensor."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from megatron_entropic.checkpoint_files.kind import Located
from megatron_entropic.conversion.exporting import BLOCK_BYTES
from megatron_entropic.conversion.view import DistributedView
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.files import HFReader
from megatron_entropic.hf.headers import CheckpointError

SHOWN = 10


@dataclass(frozen=True)
class TensorDifference:
    """Difference of one tensor: the largest |a - b|, and |a - b| / |b| in the Euclidean norm."""

    name: str
    largest: float
    relative: float


@dataclass(frozen=True)
class Comparison:
    """`problems` are tensors that cannot be compared, or have different types; `differences` those with other values."""

    tensors: int
    problems: list[str]
    differences: list[TensorDifference]

    @property
    def equal(self) -> bool:
        return not self.problems and not self.differences

    def __str__(self) -> str:
        if self.equal:
            return f"equal: all {self.tensors} tensors are bit-identical"
        lines = [
            f"not equal: {len(self.differences)} of {self.tensors} tensors have other values, {len(self.problems)} other problem(s)"
        ]
        lines += [f"  {problem}" for problem in self.problems]
        worst = sorted(self.differences, key=lambda difference: -difference.relative)
        lines += [f"  {d.name}: largest difference {d.largest:.3e}, relative {d.relative:.3e}" for d in worst[:SHOWN]]
        if len(worst) > SHOWN:
            lines.append(f"  and {len(worst) - SHOWN} more that differ less")
        return "\n".join(lines)


def compare(a: Located, b: Located) -> Comparison:
    """Compares all tensors, a block of rows at a time. Raises CheckpointError naming a file that cannot be read."""
    problems: list[str] = []
    differences: list[TensorDifference] = []
    with _tensors(a, b) as first, _tensors(b, a) as second:
        names = dict.fromkeys([*first.names(), *second.names()])
        for name in tqdm(names, desc="verify", unit=" tensors"):
            if missing := [str(located.path) for located, reader in ((a, first), (b, second)) if name not in reader.names()]:
                problems.append(f"{name}: not in {missing[0]}")
                continue
            if first.shape(name) != second.shape(name):
                problems.append(f"{name}: {list(first.shape(name))} against {list(second.shape(name))}")
                continue
            if first.dtype(name) != second.dtype(name):
                problems.append(f"{name}: {first.dtype(name)} against {second.dtype(name)}".replace("torch.", ""))
            if difference := _difference(name, first, second):
                differences.append(difference)
    return Comparison(len(names), problems, differences)


def _tensors(located: Located, other: Located) -> HFReader | DistributedView:
    """A checkpoint's tensors by Hugging Face names. One without a config.json is read by the other's."""
    if located.weights is None:
        return HFReader(located.path)
    companions: Path | None = located.companions or other.companions
    if companions is None:
        raise CheckpointError(f"{located.path}: brings no config.json, and neither does {other.path}: their tensors have no names")
    return DistributedView(located.weights, Architecture.from_hf(companions))


def _difference(name: str, a: HFReader | DistributedView, b: HFReader | DistributedView) -> TensorDifference | None:
    """Difference of a tensor's values; None when they are bit-identical (or equal, where the types differ)."""
    rows, *columns = a.shape(name)
    step = max(1, BLOCK_BYTES // (8 * math.prod(columns)))
    largest = squares = reference = 0.0
    identical = True
    for start in range(0, rows, step):
        x, y = (tensors.read_rows(name, start, min(start + step, rows)) for tensors in (a, b))
        if x.dtype == y.dtype and torch.equal(_bits(x), _bits(y)):
            reference += y.double().square().sum().item()
            continue
        distance = (x.double() - y.double()).abs()
        identical = identical and x.dtype != y.dtype and not distance.any()
        largest = max(largest, distance.max().item())
        squares += distance.square().sum().item()
        reference += y.double().square().sum().item()
    return (
        None
        if identical
        else TensorDifference(name, largest, math.sqrt(squares) / max(math.sqrt(reference), torch.finfo(torch.float64).tiny))
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes: NaNs are equal to themselves, and 0 is not -0."""
    return tensor.contiguous().view(-1).view(torch.uint8)
