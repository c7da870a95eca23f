"""One of the two ranks of part `two-gpus`: `python -m megatron_entropic.doctor.smoke.layout_rank FOLDER`, with RANK and WORLD_SIZE.

For each FOLDER/NUMBER.yaml it updates a policy in that layout, the batch being the same; rank 0 writes FOLDER/NUMBER.json.
"""

import json
import os
import random
import sys
from pathlib import Path

from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.control import Coefficients
from megatron_entropic.distributed.parallel import initialize_parallel, shutdown
from megatron_entropic.doctor.smoke.machine_size import machine_size
from megatron_entropic.doctor.smoke.packings import random_batch
from megatron_entropic.policy.engine import Policy
from megatron_entropic.system.atomic_files import write_atomically


def main() -> None:
    """All layouts, one after the other, each with groups of its own."""
    for settings in sorted(Path(sys.argv[1]).glob("*.yaml")):
        measured = measure_layout(load_config(settings), settings.with_suffix(".ranks"))
        if os.environ["RANK"] == "0":
            write_atomically(settings.with_suffix(".json"), json.dumps(measured).encode())


def measure_layout(cfg: Config, meeting: Path) -> dict[str, object]:
    """Log-probs of a random batch's response tokens, and the gradient norm of an update on it. Collective."""
    meeting.mkdir(exist_ok=True)
    parallel = initialize_parallel(cfg.parallel, seed=1, folder=meeting)
    policy = Policy(cfg, parallel)
    batch = random_batch(random.Random(0), machine_size())
    policy.prepare(batch)
    assert batch.old_log_probs_N is not None
    stats = policy.update(batch, Coefficients(alpha=0.1, bonus=0.01))
    measured: dict[str, object] = {"log_probs": batch.old_log_probs_N.tolist(), "grad_norm": stats.grad_norm, "entropy": stats.entropy}
    shutdown()
    return measured


if __name__ == "__main__":
    main()
