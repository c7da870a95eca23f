"""A plan as text: the layout in detail, the layouts that fit, those that do not and what would help, and every assumption."""

import dataclasses
from collections.abc import Iterator, Sequence

from megatron_entropic.planning.cluster import Assumptions
from megatron_entropic.planning.entropy import entropy_lines
from megatron_entropic.planning.layouts import Candidate, Site, gpus_used, helpful_knobs, implementation
from megatron_entropic.planning.model_memory import ModelSize
from megatron_entropic.planning.tables import byte_count, gb, parameter_count, seconds, table
from megatron_entropic.planning.training_memory import StageMemory


def plan_report(
    name: str, site: Site, shown: Candidate, why: str, fit: Sequence[Candidate], misfit: Sequence[Candidate], *, top: int
) -> str:
    """The whole report. `shown`: the layout in detail, of all stages; `why` says which that is."""
    parts = [
        _heading(name, site, shown),
        _layout(site, shown, why),
        _training(site, shown),
        _serving(site, shown),
        _traffic(site, shown),
        _time(shown),
        entropy_lines(shown.cfg.control, shown.cfg.batch, shown.cfg.trainer.steps, site.assumed),
        _fitting(site, fit, top),
        _not_fitting(site, misfit, top),
        _assumptions(site),
    ]
    return "\n\n".join("\n".join(lines) for lines in map(list, parts) if lines)


def _heading(name: str, site: Site, shown: Candidate) -> Iterator[str]:
    arch, cluster, cfg, work = site.arch, site.cluster, shown.cfg, shown.work
    size = ModelSize.of(arch)
    experts = f", {arch.num_experts} experts of which {arch.num_experts_per_token} a token" if arch.num_experts else ""
    yield f"{name}: {arch.architecture}, {parameter_count(size.total)} parameters, {arch.num_layers} layers{experts}, {cfg.model.dtype}"
    node = f"{cluster.nodes} x {cluster.gpus_per_node}" if cluster.nodes > 1 else f"{cluster.gpus}"
    yield f"on {node} {cluster.gpu.name} of {cluster.gpu.memory_gb:g} GB (GB are 2^30 bytes)"
    yield (
        f"a step: {cfg.batch.prompts_per_step} prompts x {cfg.batch.samples_per_prompt} samples of {work.prompt_tokens:.0f} + "
        f"{work.response_tokens:.0f} tokens on average (at most {cfg.rollout.max_new_tokens} new ones), "
        f"{_count(work.updates, 'update')} of {_count(work.micro_batches, 'micro-batch', 'es')}"
    )


def _count(number: int, thing: str, plural: str = "s") -> str:
    return f"{number} {thing}{'' if number == 1 else plural}"


def _layout(site: Site, shown: Candidate, why: str) -> Iterator[str]:
    cfg, layout, rollout = shown.cfg, shown.cfg.parallel, shown.cfg.rollout
    yield f"Layout: {why}"
    yield f"  {shown.overrides()}"
    servers = (
        f"{_count(rollout.servers, 'server')} of {_count(rollout.tensor, 'GPU')} generate"
        if shown.server
        else f"rollout.engine={rollout.engine}"
    )
    idle = f"{max(site.cluster.gpus - gpus_used(layout, rollout), 0)} of {site.cluster.gpus} idle"
    yield (
        f"  {_count(layout.world_size, 'GPU')} train{'s' if layout.world_size == 1 else ''}, {servers}, {idle}; "
        f"{implementation(cfg.model).replace('_', ' ')} layers, micro-batches of up to {cfg.batch.max_tokens_per_micro_batch} tokens"
    )


def _training(site: Site, shown: Candidate) -> Iterator[str]:
    yield "Memory of a training GPU, GB, by pipeline stage"
    header = (
        *("stage", "layers", "parameters", "gradients", "optimizer", "activations", "in flight"),
        *("LM head", "at once", "sync", "peak", "needed"),
    )
    rows = [
        (
            " to ".join(str(end) for end in sorted({group[0].stage, group[-1].stage})),
            str(group[0].layers),
            gb(group[0].model.parameters),
            gb(group[0].model.gradients),
            gb(group[0].model.optimizer),
            gb(group[0].kept),
            str(group[0].in_flight),
            gb(group[0].head),
            gb(group[0].passes),
            gb(group[0].sync),
            gb(group[0].peak),
            gb(site.training_bytes(group[0])),
        )
        for group in _alike(shown.stages)
    ]
    yield from table(header, rows)
    fits = "fits" if shown.needed <= site.gpu_bytes else "DOES NOT FIT"
    yield f"  {fits}: the fullest needs {gb(shown.needed)} of {gb(site.gpu_bytes)} GB"
    yield "  at once: the most of activations, head and what is computed with; needed: the peak of all tensors, fragmentation, reserve"


def _alike(stages: Sequence[StageMemory]) -> list[list[StageMemory]]:
    """Consecutive stages that need the same."""
    groups: list[list[StageMemory]] = []
    for memory in stages:
        if groups and dataclasses.replace(groups[-1][0], stage=memory.stage) == memory:
            groups[-1].append(memory)
        else:
            groups.append([memory])
    return groups


def _serving(site: Site, shown: Candidate) -> Iterator[str]:
    server = shown.server
    if server is None:
        return
    yield f"Memory of a rollout GPU, GB (rollout.gpu_memory_utilization={shown.cfg.rollout.gpu_memory_fraction:g})"
    header = ("weights", "KV cache", "overhead", "outside its limit", "bucket of a weight update")
    yield from table(
        header, [(gb(server.weights), gb(server.cache), gb(server.overhead), gb(server.outside), gb(server.bucket))], left=0
    )
    yield (
        f"  the cache holds {server.cached_tokens} tokens of {byte_count(server.cache_per_token)}: "
        f"{server.longest_sequences} sequences of {server.context}; {server.sequences} of mean length run at once"
    )
    if server.problem:
        yield f"  DOES NOT FIT: {server.problem}"


def _traffic(site: Site, shown: Candidate) -> Iterator[str]:
    yield "Communication of a step: what the busiest GPU sends"
    rows = [
        (traffic.kind, byte_count(traffic.bytes), f"{traffic.gb_s:g} GB/s", seconds(traffic.seconds(site.assumed.link_efficiency)))
        for traffic in shown.time.traffic
    ]
    yield from table(("kind", "bytes", "link", "time"), rows)


def _time(shown: Candidate) -> Iterator[str]:
    time = shown.time
    overlap = "generation and update overlap" if time.overlapped else "one after the other"
    yield (
        f"Time of a step: {seconds(time.total)} = rollout {seconds(time.rollout)}, update {seconds(time.update)} (pipeline bubble "
        f"{time.bubble:.0%}), weight sync {seconds(time.sync)}; {overlap}"
    )


def _fitting(site: Site, fit: Sequence[Candidate], top: int) -> Iterator[str]:
    if not fit:
        yield f"No layout fits {site.cluster.gpus} GPUs of {site.cluster.gpu.memory_gb:g} GB"
        return
    yield f"Layouts that fit, fastest first ({min(top, len(fit))} of {len(fit)})"
    header = ("step", "rollout", "update", "sync", "trains", "needed", "settings")
    rows = [
        (
            seconds(candidate.time.total),
            seconds(candidate.time.rollout),
            seconds(candidate.time.update),
            seconds(candidate.time.sync),
            str(candidate.cfg.parallel.world_size),
            gb(candidate.needed),
            candidate.overrides(),
        )
        for candidate in fit[:top]
    ]
    yield from (line.rstrip() for line in _last_column_left(header, rows))


def _last_column_left(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = table(header[:-1], [row[:-1] for row in rows], left=0)
    return [f"{line}  {row[-1]}" for line, row in zip(lines, [header, *rows], strict=True)]


def _not_fitting(site: Site, misfit: Sequence[Candidate], top: int) -> Iterator[str]:
    if not misfit:
        return
    shown = misfit[: max(3, top // 2)]
    yield f"Layouts that do not fit ({len(misfit)}), the nearest first, and what helps"
    for candidate in shown:
        if candidate.needed <= site.gpu_bytes and candidate.server is not None:
            yield f"  {candidate.overrides()}"
            yield f"    servers: {candidate.server.problem}"
            continue
        helps = helpful_knobs(candidate)
        yield f"  {gb(candidate.needed)} GB, most of it {candidate.largest_part}: {candidate.overrides()}"
        yield f"    {'helps: ' + '; '.join(helps[:3]) if helps else 'no single setting helps'}"


def _assumptions(site: Site) -> Iterator[str]:
    yield "Assumptions (--assume NAME=VALUE changes one)"
    gpu = site.cluster.gpu
    yield (
        f"  {gpu.name}: {gpu.tflops:g} TFLOP/s bfloat16, {gpu.hbm_gb_s:g} GB/s memory, {gpu.nvlink_gb_s:g} GB/s to a GPU of the node, "
        f"{gpu.network_gb_s:g} GB/s to another node, one way"
    )
    texts = assumption_texts()
    width = max(len(name) for name in texts)
    for name, text in texts.items():
        yield f"  {name.ljust(width)}  {getattr(site.assumed, name):<6g} {text}"


def assumption_texts() -> dict[str, str]:
    """The meaning of each assumption."""
    return {field.name: str(field.metadata["meaning"]) for field in dataclasses.fields(Assumptions)}
