"""Part `packings`: updates whose packings all differ. Nothing is compiled after the first ones, and memory does not grow."""

import importlib.util
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from megatron_entropic.config import BatchConfig, Config, ControlConfig, ModelConfig, OptimizerConfig, ParallelConfig, RolloutConfig
from megatron_entropic.control import Coefficients
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.doctor.smoke.findings import Findings
from megatron_entropic.doctor.smoke.machine_size import MachineSize, machine_size, save_random_model
from megatron_entropic.policy.batching import Batch, Sample
from megatron_entropic.policy.engine import Policy

PACKINGS, WARM_UP = 50, 10
"""Packings in all; those in which whatever is compiled may be compiled, and caches and allocators fill."""
_LAYERS = 4
_GROWTH_BYTES = {"cuda": 2**20, "cpu": 64 * 2**20}
"""Growth after the warm-up that is none: of what torch's allocator has handed out; of this process's resident memory."""


def run(findings: Findings) -> None:
    """One update for each packing, with both kinds of entropy in the loss."""
    size = shallow(machine_size())
    findings.step(f"making a model: {size.model_text}")
    cfg = packing_config(save_random_model(Path(tempfile.mkdtemp()), size), size)
    policy = Policy(cfg, initialize_parallel(cfg.parallel, seed=1))
    compiled, memory, peaks = Compilations(), [], []
    after_warm_up, rng = 0, random.Random(0)
    for number in range(PACKINGS):
        if number == WARM_UP:
            after_warm_up = compiled.count()
        if number % 10 == 0:
            findings.step(f"packing {number + 1} of {PACKINGS}")
        stats = policy.update(random_batch(rng, size), Coefficients(alpha=0.1, bonus=0.01))
        findings.expect(stats.applied, f"packing {number + 1}: the update was not finite")
        memory.append(_memory_bytes(size.device))
        peaks.append(_peak_bytes(size.device))
    findings.found("compiled", in_the_first_10=str(after_warm_up), afterwards=str(compiled.count() - after_warm_up))
    findings.expect(compiled.count() == after_warm_up, f"{compiled.count() - after_warm_up} compilations after packing {WARM_UP}")
    growth = memory[-1] - memory[WARM_UP]
    kind = "allocated" if size.device.type == "cuda" else "resident"
    findings.found("memory", **{f"{kind}_MiB": memory[-1] / 2**20, "growth_MiB": growth / 2**20, "peak_MiB": max(peaks) / 2**20})
    limit = _GROWTH_BYTES[size.device.type]
    findings.at_most(f"growth of {kind} memory after packing {WARM_UP}, MiB", growth / 2**20, limit / 2**20)


def shallow(size: MachineSize) -> MachineSize:
    """Fewer layers: what is compiled is the same in each."""
    return replace(size, shape=size.shape | {"num_hidden_layers": min(_LAYERS, size.shape["num_hidden_layers"])})


def packing_config(folder: Path, size: MachineSize) -> Config:
    """One rank, and control that measures the clamped entropy too, so that every kernel is met."""
    return Config(
        model=ModelConfig(hf_path=folder, dtype=size.dtype),  # type: ignore[arg-type]
        parallel=ParallelConfig(),
        batch=BatchConfig(prompts_per_step=1, samples_per_prompt=2, max_tokens_per_micro_batch=size.tokens),
        control=ControlConfig(kind="entropic+aent", target_entropy=1.0),
        optimizer=OptimizerConfig(lr=1e-6),
        rollout=RolloutConfig(engine="local", max_new_tokens=8),
    )


def random_batch(rng: random.Random, size: MachineSize) -> Batch:
    """Samples of random lengths that fill a micro-batch to nine tenths or more; log-probs as of a uniform sampler."""
    samples, used, vocab = [], 0, size.shape["vocab_size"]
    while used < 0.9 * size.tokens:
        length = min(rng.randint(2, max(3, size.tokens // 4)), size.tokens - used)
        prompt = rng.randint(1, max(1, length // 2))
        ids = [rng.randrange(2, vocab) for _ in range(length + 1)]
        response = ids[prompt:]
        samples.append(Sample(ids[:prompt], response, [-6.0] * len(response), rng.choice((-1.0, 1.0))))
        used += length
    return Batch(samples)


class Compilations:
    """Counts what torch.compile and Triton compile in this process from now on."""

    def __init__(self) -> None:
        self._kernels = 0
        if importlib.util.find_spec("triton") is not None:
            import triton

            triton.knobs.runtime.jit_post_compile_hook = self._add

    def _add(self, **_: Any) -> None:
        self._kernels += 1

    def count(self) -> int:
        from torch._dynamo.utils import counters

        return self._kernels + int(counters["stats"]["unique_graphs"])


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    return int(psutil.Process().memory_info().rss)


def _peak_bytes(device: torch.device) -> int:
    """The most memory since the last call; on a CPU what is resident now."""
    if device.type != "cuda":
        return _memory_bytes(device)
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak
