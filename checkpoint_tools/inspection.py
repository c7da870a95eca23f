"""What is in a Hugging Face directory, without loading a weight."""

import math
from collections import Counter
from pathlib import Path

from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.check import check_hf_dir
from megatron_entropic.hf.files import HFReader


def describe(hf_dir: Path) -> str:
    """Architecture, sizes and tensors of a sound directory. Raises CheckpointError naming every problem of one that is not."""
    arch = Architecture.from_hf(hf_dir)
    check_hf_dir(hf_dir, arch)
    with HFReader(hf_dir) as reader:
        sizes = {name: math.prod(reader.shape(name)) for name in reader.names()}
        dtypes = Counter(str(reader.dtype(name)).removeprefix("torch.") for name in reader.names())
        gigabytes = sum(size * reader.dtype(name).itemsize for name, size in sizes.items()) / 1e9
        files = {reader.file(name).name for name in reader.names()}
        largest = max(sizes, key=sizes.__getitem__)
        lines = [
            f"{hf_dir}: sound",
            f"  {arch.architecture}: {arch.num_layers} layers, hidden {arch.hidden_size}, feed-forward {arch.ffn_hidden_size}, "
            f"{arch.num_heads} heads of {arch.head_dim} ({arch.num_kv_heads} key-value), vocabulary {arch.vocab_size}, "
            f"{'tied' if arch.tied_embeddings else 'untied'} embeddings",
            f"  {sum(sizes.values()):,} parameters in {len(sizes)} tensors, {len(files)} file(s), {gigabytes:.3g} GB, "
            + ", ".join(f"{count} {dtype}" for dtype, count in dtypes.items()),
            f"  largest tensor {largest} {list(reader.shape(largest))}",
        ]
    return "\n".join(lines)
