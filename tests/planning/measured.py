"""The peak memory of real updates, to compare a plan with.

On a CPU, "peak memory" is the most bytes that torch's allocator had given out at any time between the making of the Policy and
the end of its second update (the first makes the optimizer's state), from the allocator's own record of every block. Blocks
freed by gloo's threads leave no trace in that record: a block that is never seen to be freed, though no tensor has it any more,
is left out. What the allocator did not give out is not counted: files mapped into memory, the interpreter, libraries.
"""

import gc
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch._subclasses.fake_tensor import FakeTensor
from torch.profiler import ProfilerActivity, profile

from megatron_entropic.config import Config
from megatron_entropic.control import Coefficients
from megatron_entropic.distributed.parallel import initialize_parallel
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.tables import hf_shapes
from megatron_entropic.policy.batching import Batch, Sample
from megatron_entropic.policy.engine import Policy

_SMALL = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 4000,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


def save_random_model(hf_dir: Path, **changes: Any) -> Path:
    """A Hugging Face directory with random float32 weights: a few million parameters, so that tensors dwarf everything else."""
    hf_dir.mkdir(parents=True)
    (hf_dir / "config.json").write_text(json.dumps(_SMALL | changes))
    generator = torch.Generator().manual_seed(0)
    shapes = hf_shapes(Architecture.from_hf(hf_dir))
    save_file({name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}, hf_dir / "model.safetensors")
    return hf_dir


def full_batch(cfg: Config, micro_batches: int, sequences: int = 8) -> Batch:
    """`micro_batches` full micro-batches of equally long samples for every data-parallel rank."""
    rng = random.Random(0)
    length = cfg.batch.max_tokens_per_micro_batch // sequences
    prompt, response = length // 4, length - length // 4 + 1

    def tokens(count: int) -> list[int]:
        return [rng.randrange(2, 900) for _ in range(count)]

    return Batch(
        [
            Sample(tokens(prompt), tokens(response), [-1.0] * response, 1.0 if index % 2 else -1.0)
            for index in range(sequences * micro_batches * cfg.parallel.data)
        ]
    )


def peak_of_updates(cfg: Config, micro_batches: int) -> tuple[int, int]:
    """(peak memory in bytes, elements of the parameters) of this rank; to be run by all ranks of the layout."""
    parallel = initialize_parallel(cfg.parallel, 0)
    batch = full_batch(cfg, micro_batches)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        policy = Policy(cfg, parallel)
        for _ in range(2):
            policy.update(batch, Coefficients(0.1, 0.0))
    # Fake tensors, which other tests of this process may have left behind, have no memory.
    tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor) and not isinstance(thing, FakeTensor)]
    alive = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    assert recorded.profiler is not None
    blocks = sorted(_blocks(recorded.profiler.kineto_results.experimental_event_tree()))
    return _peak(blocks, alive), sum(parameter.numel() for parameter in policy.model.parameters())


def _blocks(events: list[Any]) -> Iterator[tuple[int, int, int]]:
    """(time, address, bytes: negative when freed) of everything the allocator did."""
    for event in events:
        if event.name == "[memory]":
            yield event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size
        yield from _blocks(event.children)


def _peak(blocks: list[tuple[int, int, int]], alive: set[int]) -> int:
    changes: list[tuple[int, int]] = []
    given: dict[int, tuple[int, int]] = {}
    for time, address, size in blocks:
        if size > 0:
            given[address] = (time, size)  # in place of an earlier one whose end was not seen
        elif address in given:
            changes += [given.pop(address), (time, size)]
    changes += [block for address, block in given.items() if address in alive]
    held = peak = 0
    for _, size in sorted(changes):
        held += size
        peak = max(peak, held)
    return peak
