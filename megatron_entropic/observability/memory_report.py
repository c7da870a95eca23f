"""Reports of memory: what holds it in a profiled step, and when it ran out."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from megatron_entropic import platform
from megatron_entropic.config import Config
from megatron_entropic.distributed.parallel import Parallel
from megatron_entropic.errors import ReportedError
from megatron_entropic.observability.memory_holders import Holding, ProcessMemory, holdings, largest_tensors, process_memory
from megatron_entropic.planning.tables import byte_count, table
from megatron_entropic.policy.engine import Policy
from megatron_entropic.system.atomic_files import write_atomically

logger = logging.getLogger(__name__)

FOLDER = "profile"
MOST_TENSORS = 30
_SAYS = ("can't allocate memory", "not enough memory", "CUDA out of memory", "Cannot allocate memory")
"""Words of the errors that torch and the system raise as RuntimeError and OSError."""


class OutOfMemoryError(ReportedError, RuntimeError):
    """A rank's memory ran out; the message says what takes most of it, and names the file with all of it."""


def out_of_memory(error: BaseException | None) -> BaseException | None:
    """The error among `error` and its causes that says that memory ran out; None where none does."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return error
        if isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in _SAYS):
            return error
        error = error.__cause__
    return None


def explain_out_of_memory(cfg: Config, parallel: Parallel, policy: Policy | None, error: BaseException) -> OutOfMemoryError:
    """The error to raise instead of `error`, once run_dir/profile/out-of-memory-rank-N.txt is written.

    To be called while `error` is handled: what its frames hold is still there then, and counts.
    """
    memory = process_memory()
    rows = holdings(cfg, parallel, policy)
    path = cfg.run_dir / FOLDER / f"out-of-memory-rank-{parallel.rank}.txt"
    said = platform.first_line(error)
    text = "\n".join([f"rank {parallel.rank}: {said}", "", *memory_lines(memory, rows), "", *_tensor_lines()])
    try:
        write_atomically(path, (text + "\n").encode())
        where = f"all of it: {path}"
    except OSError as unwritten:
        where = f"the report could not be written ({unwritten})"
    return OutOfMemoryError(f"rank {parallel.rank} ran out of memory: {said}; {_most(rows)}; {where}")


def write_memory(cfg: Config, parallel: Parallel, policy: Policy | None, step: int) -> Path:
    """Writes what holds memory now to run_dir/profile/memory-step-N-rank-R.json; `step` counts from 1."""
    memory, (tensors, in_tensors) = process_memory(), largest_tensors(MOST_TENSORS)
    content = {
        "step": step,
        "rank": parallel.rank,
        "process": asdict(memory),
        "holders": [asdict(row) for row in holdings(cfg, parallel, policy)],
        "tensors_bytes": in_tensors,
        "largest_tensors": [asdict(tensor) for tensor in tensors],
    }
    path = cfg.run_dir / FOLDER / f"memory-step-{step:06}-rank-{parallel.rank}.json"
    return write_atomically(path, json.dumps(content, indent=1).encode())


def memory_lines(memory: ProcessMemory, rows: Sequence[Holding]) -> list[str]:
    """The table of who holds what, for people."""
    known = sum(row.now or 0 for row in rows)
    rest = f"{byte_count(max(0, memory.peak - known))}, activations, tiles and what is no tensor"
    head = [
        f"{memory.where}: {byte_count(memory.now)} now, {byte_count(memory.peak)} at most; {byte_count(memory.available)} are free",
        f"of the most, {byte_count(known)} are named below; the rest: {rest}",
        "",
    ]
    cells = [(row.name, _size(row.now), _size(row.expected), row.lowered_by) for row in rows]
    return [*head, *table(("held by", "now", "expected", "lowered by"), [(*row[:3], f"  {row[3]}") for row in cells], indent="")]


def _size(count: float | None) -> str:
    return "–" if count is None else byte_count(count)


def _most(rows: Sequence[Holding]) -> str:
    """The largest holder and its cure."""
    sized = [(row.expected if row.now is None else row.now, row) for row in rows]
    known = [(size, row) for size, row in sized if size]
    if not known:
        return "the policy was not made yet: a smaller model, or more of parallel.tensor and parallel.pipeline, needs less"
    size, row = max(known, key=lambda pair: pair[0])
    return f"most is held by {row.name} ({byte_count(size)}), lowered by {row.lowered_by}"


def _tensor_lines() -> list[str]:
    tensors, total = largest_tensors(MOST_TENSORS)
    rows = [("x".join(map(str, tensor.shape)) or "1", tensor.dtype, tensor.device, byte_count(tensor.bytes)) for tensor in tensors]
    title = f"The largest of the tensors that Python knows of ({byte_count(total)} together; what autograd keeps is not among them)"
    return [title, "", *table(("shape", "dtype", "device", "size"), rows, left=3, indent="")]
