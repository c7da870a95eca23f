"""The layouts of a recipe on a cluster: what each needs and takes, which fit, and what would help those that do not."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron_entropic.config import Config, ModelConfig, ParallelConfig, RolloutConfig
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.layout import check_layout, server_problems
from megatron_entropic.planning.activations import Implementation, Unevenness
from megatron_entropic.planning.cluster import GB, Assumptions, Cluster
from megatron_entropic.planning.serving import ServerMemory, server_memory
from megatron_entropic.planning.step_time import StepTime, step_time
from megatron_entropic.planning.training_memory import StageMemory, training_memory
from megatron_entropic.planning.workload import Workload

RECOMPUTE = ("none", "selective", "full")
"""In the order of their cost in time."""


@dataclass(frozen=True)
class Site:
    """The input of a plan: a model on a cluster, under assumptions."""

    arch: Architecture
    cluster: Cluster
    assumed: Assumptions

    @property
    def gpu_bytes(self) -> float:
        return self.cluster.gpu.memory_gb * GB

    def training_bytes(self, memory: StageMemory) -> float:
        """Bytes of a training GPU: tensors, what the allocator loses between them, and what is not tensors."""
        return memory.peak + self.assumed.fragmentation * memory.passes + self.assumed.reserve_gb * GB

    def evaluate(self, cfg: Config, *, all_stages: bool = False) -> "Candidate":
        """Memory and time of `cfg` as it is."""
        work = Workload.of(cfg, self.assumed)
        ends = sorted({0, cfg.parallel.pipeline - 1})
        memory = training_memory(
            self.arch,
            cfg,
            implementation=implementation(cfg.model),
            micro_batches=work.micro_batches,
            uneven=Unevenness(self.assumed.packing_padding, self.assumed.expert_imbalance),
            gpu_bytes=int(self.gpu_bytes),
            stages=None if all_stages else ends,
        )
        server = server_memory(self.arch, cfg, self.cluster, self.assumed, work) if cfg.rollout.engine == "vllm" else None
        time = step_time(self.arch, cfg, self.cluster, self.assumed, work, server)
        return Candidate(self, cfg, work, tuple(memory), server, time)


@dataclass(frozen=True)
class Candidate:
    """One layout with what it needs and takes."""

    site: Site
    cfg: Config
    work: Workload
    stages: tuple[StageMemory, ...]
    server: ServerMemory | None
    time: StepTime

    @property
    def needed(self) -> float:
        """Bytes of the fullest training GPU."""
        return max(self.site.training_bytes(memory) for memory in self.stages)

    @property
    def fits(self) -> bool:
        return self.needed <= self.site.gpu_bytes and (self.server is None or self.server.problem is None)

    @property
    def largest_part(self) -> str:
        """The largest consumer of the fullest training GPU's memory."""
        memory = max(self.stages, key=self.site.training_bytes)
        parts = {
            "parameters and gradients": memory.model.parameters + memory.model.gradients,
            "optimizer state": memory.model.optimizer,
            "activations": memory.passes,
        }
        return max(parts, key=lambda name: parts[name])

    def overrides(self) -> str:
        """The layout as it is written on the command line."""
        layout, rollout = self.cfg.parallel, self.cfg.rollout
        words = [f"parallel.tensor={layout.tensor}", f"parallel.pipeline={layout.pipeline}", f"parallel.data={layout.data}"]
        words += [f"parallel.expert={layout.expert}"] if self.site.arch.num_experts else []
        words += [f"parallel.sequence={str(layout.sequence).lower()}", f"model.recompute={self.cfg.model.recompute}"]
        words += [f"rollout.servers={rollout.servers}", f"rollout.tensor={rollout.tensor}"] if self.server else []
        return " ".join(words)


def implementation(model: ModelConfig) -> Implementation:
    """The layers a GPU run takes."""
    return "local" if model.layer_spec == "local" else "transformer_engine"


def changed(cfg: Config, **fields: Any) -> Config:
    """`cfg` with some settings, named section__field. Raises ValueError for values that settings cannot have."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in fields.items():
        section, field = name.split("__")
        sections.setdefault(section, {})[field] = value
    return dataclasses.replace(
        cfg, **{section: dataclasses.replace(getattr(cfg, section), **values) for section, values in sections.items()}
    )


def gpus_used(layout: ParallelConfig, rollout: RolloutConfig) -> int:
    """GPUs of the training ranks and of the servers."""
    return layout.world_size + (rollout.servers * rollout.tensor if rollout.engine == "vllm" else 0)


def search(site: Site, cfg: Config) -> tuple[list[Candidate], list[Candidate]]:
    """(layouts that fit, fastest step first; layouts that do not fit, the nearest to it first), all GPUs in use.

    Nodes are split between training and servers; a single node's GPUs are. For each layout the cheapest recomputation that
    fits is taken. Batch, lengths and micro-batches stay as they are in `cfg`.
    """
    fit: list[Candidate] = []
    misfit: list[Candidate] = []
    for training, serving in _splits(site.cluster, cfg.rollout):
        servers = _best_servers(site, cfg, serving)
        for layout in _layouts(site, servers, training):
            tried = [site.evaluate(changed(layout, model__recompute=recompute)) for recompute in RECOMPUTE]
            first = next((candidate for candidate in tried if candidate.fits), None)
            if first is not None:
                fit.append(first)
            else:
                misfit.append(min(tried, key=lambda candidate: candidate.needed))
    return sorted(fit, key=lambda c: c.time.total), sorted(misfit, key=lambda c: c.needed)


def _splits(cluster: Cluster, rollout: RolloutConfig) -> Iterator[tuple[int, int]]:
    """(GPUs that train, GPUs that serve)."""
    if rollout.engine != "vllm":
        yield cluster.gpus, 0
    elif cluster.nodes == 1:
        yield from ((training, cluster.gpus - training) for training in range(1, cluster.gpus))
    else:
        step = cluster.gpus_per_node
        yield from ((nodes * step, cluster.gpus - nodes * step) for nodes in range(1, cluster.nodes))


def _best_servers(site: Site, cfg: Config, gpus: int) -> Config:
    """`cfg` with the servers that generate fastest on `gpus` GPUs, or the largest ones where none fit."""
    if not gpus:
        return cfg
    choices: list[tuple[bool, float, Config]] = []
    for tensor in _powers(min(gpus, site.cluster.gpus_per_node)):
        choice = changed(cfg, rollout__tensor=tensor, rollout__servers=gpus // tensor)
        if gpus % tensor or server_problems(site.arch, choice.rollout):
            continue
        candidate = site.evaluate(choice)
        assert candidate.server is not None
        fits = candidate.server.problem is None
        choices.append((not fits, candidate.time.rollout if fits else -tensor, choice))
    return min(choices, key=lambda choice: choice[:2])[2] if choices else cfg


def _layouts(site: Site, cfg: Config, gpus: int) -> Iterator[Config]:
    """Every legal layout of `gpus` training ranks: tensor ranks within a node, sequence parallel where there are several."""
    samples = cfg.batch.prompts_per_step * cfg.batch.samples_per_prompt // cfg.batch.mini_batches
    for tensor in _powers(min(gpus, site.cluster.gpus_per_node)):
        for pipeline in range(1, min(site.arch.num_layers, gpus // tensor) + 1):
            data = gpus // (tensor * pipeline)
            if tensor * pipeline * data != gpus or data > samples:
                continue
            for expert in _expert_sizes(site.arch, tensor * data):
                layout = changed(
                    cfg,
                    parallel__tensor=tensor,
                    parallel__pipeline=pipeline,
                    parallel__data=data,
                    parallel__expert=expert,
                    parallel__sequence=tensor > 1,
                )
                if not check_layout(site.arch, layout.parallel, layout.batch, layout.rollout):
                    yield layout


def _powers(most: int) -> Iterator[int]:
    size = 1
    while size <= most:
        yield size
        size *= 2


def _expert_sizes(arch: Architecture, ranks: int) -> list[int]:
    if not arch.num_experts:
        return [1]
    return [size for size in _powers(min(ranks, arch.num_experts)) if arch.num_experts % size == 0 and ranks % size == 0]


def helpful_knobs(candidate: Candidate) -> list[str]:
    """Single changes that make a layout fit, each with what is needed then; those that take no more GPUs first."""
    cfg, site = candidate.cfg, candidate.site
    layout, batch = cfg.parallel, cfg.batch
    longest = cfg.rollout.max_new_tokens + int(candidate.work.prompt_tokens)
    changes: list[dict[str, Any]] = [{"model__recompute": r} for r in RECOMPUTE[RECOMPUTE.index(cfg.model.recompute) + 1 :]]
    if layout.tensor > 1 and not layout.sequence:
        changes.append({"parallel__sequence": True})
    for factor in (2, 4, 8):
        if layout.data % factor == 0:
            rest = {"parallel__data": layout.data // factor}
            if layout.tensor * factor <= site.cluster.gpus_per_node:
                changes.append({"parallel__tensor": layout.tensor * factor, "parallel__sequence": True, **rest})
            changes.append({"parallel__pipeline": layout.pipeline * factor, **rest})
        changes.append({"parallel__data": layout.data * factor})
    if longest < batch.max_tokens_per_micro_batch:
        changes.append({"batch__max_tokens_per_micro_batch": longest})
    found: list[tuple[int, str]] = []
    for change in changes:
        data, tensor = change.get("parallel__data", layout.data), change.get("parallel__tensor", layout.tensor)
        if data * tensor % layout.expert:
            continue
        other = changed(cfg, **change)
        if check_layout(site.arch, other.parallel, other.batch, other.rollout):
            continue
        needed = site.evaluate(other).needed
        if needed <= site.gpu_bytes:
            words = " ".join(f"{name.replace('__', '.')}={str(value).lower()}" for name, value in change.items())
            more = other.parallel.world_size - layout.world_size
            found.append((more, f"{words} ({needed / GB:.0f} GB{f', {more} more GPUs' if more else ''})"))
    return [text for _, text in sorted(found, key=lambda entry: entry[0])]
