"""`megatron-entropic plan RECIPE`: reads the recipe, plans, prints. No GPU, no torch, no model files but config.json."""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.config import Config
from megatron_entropic.config.loading import ConfigError, load_config
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.layout import check_layout
from megatron_entropic.planning.cluster import GPUS, Assumptions, cluster_of, gigabytes
from megatron_entropic.planning.layouts import Candidate, Site, gpus_used, search
from megatron_entropic.planning.plan_text import assumption_texts, plan_report
from megatron_entropic.start_checks.learning import check_learning

GPUS_PER_NODE = 8


def add_plan_command(commands: Any) -> None:
    """Adds the subcommand to the command line's `commands`."""
    texts = "\n".join(f"  {name:18} {text}" for name, text in assumption_texts().items())
    plan = commands.add_parser(
        "plan",
        allow_abbrev=False,
        help="memory, communication and time of a recipe on a cluster, and the layouts that fit",
        description="Prints a recipe's memory, communication and time on a cluster, before anything is started. Needs no GPU, "
        "and of the model only its config.json, which comes with the recipes.",
        epilog="Example: megatron-entropic plan llama3.3_70b --gpus 64 --gpu h100\n\nassumptions:\n" + texts,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.add_argument("source", metavar="RECIPE", help="a recipe's name, a recipe file, or a config.yaml")
    plan.add_argument("overrides", nargs="*", metavar="section.field=value", help="settings to change")
    plan.add_argument("--gpus", type=int, metavar="N", help="GPUs for training and rollouts together (default: what the recipe uses)")
    plan.add_argument("--nodes", type=int, metavar="N", help="the same as --gpus, in whole nodes")
    plan.add_argument("--gpus-per-node", type=int, default=GPUS_PER_NODE, metavar="N", help="default: %(default)s")
    plan.add_argument("--gpu", default="h100", metavar="KIND", help=f"{', '.join(GPUS)} (default: %(default)s)")
    plan.add_argument("--gpu-memory", type=gigabytes, metavar="GB", help="memory of a GPU (80 or 80GB) instead of its data sheet's")
    plan.add_argument("--assume", nargs="+", default=[], metavar="NAME=VALUE", help="change assumptions; the list is below")
    plan.add_argument("--top", type=int, default=8, metavar="N", help="layouts to list (default: %(default)s)")
    plan.set_defaults(command=_plan)


def _plan(options: argparse.Namespace) -> int:
    """Prints the plan; the exit code is 1 when nothing fits."""
    text, fits = plan(
        options.source,
        options.overrides,
        gpus=options.gpus,
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node,
        gpu=options.gpu,
        memory_gb=options.gpu_memory,
        assume=options.assume,
        top=options.top,
    )
    print(text)
    return 0 if fits else 1


def plan(
    source: str,
    overrides: Sequence[str] = (),
    *,
    gpus: int | None = None,
    nodes: int | None = None,
    gpus_per_node: int = GPUS_PER_NODE,
    gpu: str = "h100",
    memory_gb: float | None = None,
    assume: Sequence[str] = (),
    top: int = 8,
) -> tuple[str, bool]:
    """(the report, whether any layout fits). Raises ConfigError or ValueError naming the field and its legal values."""
    cfg = load_config(source, overrides)
    if cfg.rollout.share_gpu:
        raise ConfigError("rollout.share_gpu=true: a plan has GPUs of their own for training and rollouts; plan without it")
    arch = architecture_of(model_folder(cfg.model.hf_path).hf_dir)
    if problems := check_layout(arch, cfg.parallel, cfg.batch, cfg.rollout):
        raise ConfigError("; ".join(problems))
    check_learning(cfg, arch.vocab_size)
    used = gpus_used(cfg.parallel, cfg.rollout)
    cluster = cluster_of(gpu=gpu, memory_gb=memory_gb, gpus=gpus, nodes=nodes, gpus_per_node=gpus_per_node, needed=used)
    site = Site(arch, cluster, Assumptions.of(assume))
    fit, misfit = search(site, cfg)
    shown, why = _shown(site, cfg, fit, used)
    name = source if not source.endswith((".py", ".yaml", ".yml")) else Path(source).name
    return plan_report(name, site, shown, why, fit, misfit, top=top), bool(fit) or shown.fits


def _shown(site: Site, cfg: Config, fit: Sequence[Candidate], used: int) -> tuple[Candidate, str]:
    """The layout to show in detail: the recipe's own where it takes the cluster as it is, else the fastest that fits."""
    if used == site.cluster.gpus or not fit:
        also = f", which takes {used} of {site.cluster.gpus} GPUs" if used != site.cluster.gpus else ""
        return site.evaluate(cfg, all_stages=True), f"the recipe's own{also}"
    return site.evaluate(fit[0].cfg, all_stages=True), f"the fastest that fits; the recipe's own takes {used} GPUs"


def architecture_of(hf_dir: Path) -> Architecture:
    """The architecture of the model in `hf_dir`, or the published one of its name while the model is not there yet."""
    published = published_architecture(hf_dir)
    if not (hf_dir / "config.json").is_file() and published is not None:
        return Architecture.from_hf(published)
    return Architecture.from_hf(hf_dir)


def published_architecture(folder: Path) -> Path | None:
    """The folder in recipes/architectures/ with the public config.json of the model that `folder` is named after."""
    known = Path(importlib.import_module("recipes").__file__ or "").parent / "architectures" / folder.name
    return known if (known / "config.json").is_file() else None
