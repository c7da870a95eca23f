"""One of the two ranks of part `two-gpus`: `python -m megatron_entropic.doctor.smoke.layout_rank FOLDER`, with RANK and WORLD_SIZE.

Rank 0 makes a model in FOLDER/model. Then both update it in each layout, the batch being the same; rank 0 writes FOLDER/NUMBER.json.
"""

import json
import os
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_entropic.config import Config
from megatron_entropic.control import Coefficients
from megatron_entropic.distributed.parallel import initialize_parallel, shutdown
from megatron_entropic.doctor.smoke.machine_size import machine_size, save_random_model
from megatron_entropic.doctor.smoke.packings import packing_config, random_batch, shallow
from megatron_entropic.doctor.smoke.two_ranks import LAYOUTS
from megatron_entropic.policy.engine import Policy
from megatron_entropic.system.atomic_files import write_atomically


def main() -> None:
    """All layouts, one after the other, each with groups of its own; rank 1 meets rank 0 only once the model is there."""
    folder, is_first, size = Path(sys.argv[1]), os.environ["RANK"] == "0", shallow(machine_size())
    if is_first:
        save_random_model(folder / "model", size)
    for number, layout in enumerate(LAYOUTS.values()):
        cfg = replace(packing_config(folder / "model", size), parallel=layout)
        meeting = folder / f"{number}.ranks"
        meeting.mkdir(exist_ok=True)
        measured = measure_layout(cfg, meeting)
        if is_first:
            write_atomically(folder / f"{number}.json", json.dumps(measured).encode())


def measure_layout(cfg: Config, meeting: Path) -> dict[str, Any]:
    """Log-probs of a random batch's response tokens, and the gradient norm of an update on it. Collective."""
    parallel = initialize_parallel(cfg.parallel, seed=1, folder=meeting)
    policy = Policy(cfg, parallel)
    batch = random_batch(random.Random(0), machine_size())
    policy.prepare(batch)
    assert batch.old_log_probs_N is not None
    stats = policy.update(batch, Coefficients(alpha=0.1, bonus=0.01))
    shutdown()
    return {"dtype": cfg.model.dtype, "log_probs": batch.old_log_probs_N.tolist(), "grad_norm": stats.grad_norm}


if __name__ == "__main__":
    main()
