"""The all-reduce of a preflight: `python -m megatron_entropic.doctor.all_reduce` where each rank will run, with the ranks' own devices.

Prints one line of JSON: whether all ranks met, what went wrong, and how fast it was.
"""

import argparse
import json
import os
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from megatron_entropic.launch.launcher import given_rank
from megatron_entropic.platform import communication_backend, select_device
from megatron_entropic.system.devices import ask_for_cpu

MARK = "PREFLIGHT "
_BYTES = {"nccl": 256 * 2**20, "gloo": 4 * 2**20}
_REPEATS = 3


def main() -> None:
    """Reports on this rank; the exit code is 0 whatever was found."""
    parser = argparse.ArgumentParser(prog="python -m megatron_entropic.doctor.all_reduce", description=__doc__)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for the rendezvous, and for each all-reduce")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="the run's parallel.device")
    options = parser.parse_args()
    if options.device == "cpu":
        ask_for_cpu()
    timeout = timedelta(seconds=options.timeout)
    report: dict[str, Any] = {"backend": communication_backend(), "joined": False}
    try:
        _measure(report, timeout)
    except (RuntimeError, ValueError, OSError) as error:
        report["error"] = " ".join(str(error).split())[:300] or type(error).__name__
    print(MARK + json.dumps(report), flush=True)
    os._exit(0)  # the destructors of a broken group may wait for its peers


def _measure(report: dict[str, Any], timeout: timedelta) -> None:
    """Adds to the report. Raises what torch.distributed raises."""
    rank = given_rank(os.environ) or 0
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        report["joined"] = True
        return
    device = select_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group(report["backend"], init_method="env://", rank=rank, world_size=size, timeout=timeout)
    report["joined"] = True
    values = torch.empty(_BYTES[report["backend"]] // 4, dtype=torch.float32, device=device)
    for _ in range(_REPEATS):
        values.fill_(rank + 1.0)
        start = time.monotonic()
        dist.all_reduce(values)
        lowest, highest = values.min().item(), values.max().item()
        report["seconds"] = time.monotonic() - start
        if lowest != highest or highest != size * (size + 1) / 2:
            raise RuntimeError(f"the sum over {size} ranks came out as {lowest} ... {highest} instead of {size * (size + 1) / 2}")
    report["gb_per_s"] = values.nbytes * 2 * (size - 1) / size / report["seconds"] / 1e9
    dist.barrier()


if __name__ == "__main__":
    main()
