"""The machines a run is planned for, and everything the estimates assume about them: named, printed and overridable."""

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

GB = 2**30
"""All gigabytes of a plan are 2^30 bytes, as nvidia-smi and torch count them."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, by its data sheet; bandwidths in one direction."""

    name: str
    memory_gb: float
    """Total memory as the driver reports it."""
    tflops: float
    """Dense bfloat16."""
    hbm_gb_s: float
    nvlink_gb_s: float
    """To the other GPUs of the node (PCIe where there is no NVLink)."""
    network_gb_s: float
    """To other nodes, with the network card that usually comes with it, a GPU."""


GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40", 40.0, 312, 1555, 300, 25),
        Gpu("a100", 80.0, 312, 2039, 300, 25),
        Gpu("h100", 79.6, 989, 3350, 450, 50),
        Gpu("h200", 140.4, 989, 4800, 450, 50),
        Gpu("b200", 179.0, 2250, 7700, 900, 50),
        Gpu("l40s", 45.0, 362, 864, 32, 25),
    )
}


@dataclass(frozen=True)
class Cluster:
    """Equal nodes of equal GPUs."""

    nodes: int
    gpus_per_node: int
    gpu: Gpu

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    def link_gb_s(self, ranks: int, stride: int = 1) -> float:
        """Nominal bandwidth between `ranks` GPUs that are `stride` ranks apart: inside a node, or else over the network."""
        return self.gpu.nvlink_gb_s if ranks * stride <= self.gpus_per_node else self.gpu.network_gb_s


def _assumed(value: float, meaning: str) -> float:
    """A field of Assumptions: its default and what it means."""
    default: float = dataclasses.field(default=value, metadata={"meaning": meaning})
    return default


@dataclass(frozen=True)
class Assumptions:
    """Assumptions of a plan. Each is printed with the plan and set by `--assume NAME=VALUE`."""

    prompt_tokens: float = _assumed(256, "mean length of a prompt")
    response_share: float = _assumed(0.5, "mean length of a response, as a fraction of rollout.max_new_tokens")
    mfu: float = _assumed(0.45, "fraction of its peak that a GPU's own kernels reach; pipeline bubbles and communication come on top")
    link_efficiency: float = _assumed(0.7, "fraction of the nominal bandwidth that collectives reach; none overlaps with computation")
    hbm_efficiency: float = _assumed(0.6, "fraction of the memory bandwidth that decoding reaches")
    decode_overhead_ms: float = _assumed(4.0, "of a decoding step, beside weights and cache: launches, small all-reduces, scheduling")
    packing_padding: float = _assumed(1.15, "padded tokens for each token in the attention of the local layers (1.75 at most)")
    expert_imbalance: float = _assumed(1.3, "tokens of the busiest expert-parallel rank over their mean; none is dropped")
    reserve_gb: float = _assumed(4.0, "of a training GPU: CUDA context, NCCL buffers, cuBLAS workspaces")
    fragmentation: float = _assumed(0.08, "fraction of the activations that is lost between the allocator's blocks")
    server_overhead_gb: float = _assumed(4.0, "of a rollout GPU: activations and CUDA graphs, inside gpu_memory_utilization")

    sample_noise: float = _assumed(0.6, "how much the entropy of samples differs, as a fraction of it; 0.15 to 0.8 measured")
    entropy_gain: float = _assumed(0.02, "how far an update at alpha 1 moves the entropy, as a fraction of it; SmolLM2 at 5e-6: 0.1")

    @classmethod
    def of(cls, settings: Sequence[str]) -> "Assumptions":
        """The defaults changed by `NAME=VALUE` each. Raises ValueError naming the one that is unknown or no number above 0."""
        names = [field.name for field in dataclasses.fields(cls)]
        changes: dict[str, float] = {}
        for setting in settings:
            name, _, text = setting.partition("=")
            if name not in names:
                close = get_close_matches(name, names, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"--assume {setting}: there is no assumption {name!r}{hint} (there are: {', '.join(names)})")
            try:
                value = float(text)
            except ValueError:
                value = 0.0
            if not 0 < value < float("inf"):
                raise ValueError(f"--assume {setting}: the value must be a number above 0")
            changes[name] = value
        return cls(**changes)


def gigabytes(text: str) -> float:
    """A size such as 80, 80GB, 80 GiB or 81920MiB, in GB of 2^30 bytes, as the prefixes are meant everywhere here.

    Raises ArgumentTypeError, which argparse shows with the option's name.
    """
    matched = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([MGT])?(?:i?B)?\s*", text, flags=re.IGNORECASE)
    if matched is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write GB as in 80 or 80GB")
    return float(matched[1]) * {"M": 2**-10, "G": 1.0, "T": 2.0**10}[(matched[2] or "G").upper()]


def cluster_of(*, gpu: str, memory_gb: float | None, gpus: int | None, nodes: int | None, gpus_per_node: int, needed: int) -> Cluster:
    """The cluster that the command line describes; without a number of GPUs as many as are `needed`.

    Raises ValueError naming the option that is unknown, or what contradicts what.
    """
    if gpu not in GPUS:
        raise ValueError(f"--gpu={gpu}: not one of {', '.join(GPUS)}; give the nearest and its --gpu-memory")
    kind = GPUS[gpu] if memory_gb is None else dataclasses.replace(GPUS[gpu], memory_gb=memory_gb)
    for name, value in (("--gpus", gpus), ("--nodes", nodes), ("--gpus-per-node", gpus_per_node), ("--gpu-memory", memory_gb)):
        if value is not None and not value > 0:
            raise ValueError(f"{name}={value}: must be above 0")
    if gpus is None:
        gpus = needed if nodes is None else nodes * gpus_per_node
    if nodes is not None and nodes * gpus_per_node != gpus:
        raise ValueError(f"--gpus={gpus} is not --nodes={nodes} x --gpus-per-node={gpus_per_node}; give two of the three")
    if gpus <= gpus_per_node:
        return Cluster(1, gpus, kind)
    if gpus % gpus_per_node:
        raise ValueError(f"--gpus={gpus} is not a multiple of --gpus-per-node={gpus_per_node}; legal values: {gpus_per_node} x nodes")
    return Cluster(gpus // gpus_per_node, gpus_per_node, kind)
