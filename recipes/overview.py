"""Resources and times of every recipe, by `plan`: the line in each recipe's docstring and the table of docs/recipes.md.

Also the output of the commands shown in docs/choosing_a_layout.md. `python -m recipes.overview` prints the table;
`python -m recipes.overview --write` puts table, lines and outputs where they belong.
"""

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.commands.plan import GPUS_PER_NODE, architecture_of
from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.planning.cluster import GB, Assumptions, cluster_of
from megatron_entropic.planning.layouts import Candidate, Site, gpus_used
from megatron_entropic.planning.model_memory import ModelSize
from megatron_entropic.planning.tables import parameter_count, seconds

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER.parent / "docs" / "recipes.md"
LAYOUT_PAGE = FOLDER.parent / "docs" / "choosing_a_layout.md"
SHOWN = re.compile(r"^\$ megatron-entropic (plan [^\n]*)\n(.*?)(?=^```$)", flags=re.MULTILINE | re.DOTALL)
"""A command on the page, and its output."""
GPU = "h100"
LINE = re.compile(r"^(@MEMORY@|\d+ x 80 GB: .*)$", flags=re.MULTILINE)
"""The line of a docstring that says what a recipe needs."""
TABLE = re.compile(r"^\| recipe \|.*?(?=\n\n)", flags=re.MULTILINE | re.DOTALL)


def names() -> list[str]:
    """All recipes for clusters, smallest model first."""
    found = [path.stem for path in FOLDER.glob("*.py") if LINE.search(path.read_text(encoding="utf-8")) and path.stem != "overview"]

    def size(name: str) -> tuple[int, int, str]:
        cfg = load_config(name)
        return ModelSize.of(architecture_of(model_folder(cfg.model.hf_path).hf_dir)).total, gpus_used(cfg.parallel, cfg.rollout), name

    return sorted(found, key=size)


def variants(name: str) -> tuple[str, ...]:
    """The variants of a recipe: `NAME:VARIANT` on the command line."""
    found: tuple[str, ...] = getattr(importlib.import_module(f"recipes.{name}"), "VARIANTS", ())
    return found


def planned(cfg: Config) -> Candidate:
    """Memory and time of a recipe on as many GPUs as it takes."""
    used = gpus_used(cfg.parallel, cfg.rollout)
    cluster = cluster_of(gpu=GPU, memory_gb=None, gpus=used, nodes=None, gpus_per_node=GPUS_PER_NODE, needed=used)
    return Site(architecture_of(model_folder(cfg.model.hf_path).hf_dir), cluster, Assumptions()).evaluate(cfg, all_stages=True)


def line(name: str) -> str:
    """Resources that `name` needs, in a sentence."""
    cfg = load_config(name)
    candidate, training, used = planned(cfg), cfg.parallel.world_size, gpus_used(cfg.parallel, cfg.rollout)
    return (
        f"{used} x 80 GB: {training} train, {used - training} serve; the fullest training GPU needs "
        f"{candidate.needed / GB:.0f} GB, and a step takes about {seconds(candidate.time.total)} on H100s."
    )


def table() -> str:
    """All recipes as a Markdown table."""
    rows = [
        "| recipe | model | GPUs | training layout | servers | needs | a step | responses | control | variants |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*rows, *map(_row, names())])


def _row(name: str) -> str:
    cfg = load_config(name)
    candidate = planned(cfg)
    layout, rollout = cfg.parallel, cfg.rollout
    parts = [f"{axis} {size}" for axis, size in _axes(cfg) if size > 1] + (
        [f"recompute {cfg.model.recompute}"] * (cfg.model.recompute != "none")
    )
    cells = (
        f"`{name}`",
        f"{cfg.model.hf_path.name}, {parameter_count(ModelSize.of(candidate.site.arch).total)}",
        f"{gpus_used(layout, rollout)}",
        f"{layout.world_size}: " + ", ".join(parts),
        f"{rollout.servers} x {rollout.tensor}",
        f"{candidate.needed / GB:.0f} GB",
        seconds(candidate.time.total),
        f"{cfg.batch.prompts_per_step} x {cfg.batch.samples_per_prompt} of up to {rollout.max_new_tokens}",
        cfg.control.kind,
        ", ".join(f"`{variant}`" for variant in variants(name)),
    )
    return "| " + " | ".join(cells) + " |"


def _axes(cfg: Config) -> Iterator[tuple[str, int]]:
    for axis in ("tensor", "pipeline", "data", "expert"):
        yield axis, getattr(cfg.parallel, axis)


def shown_output(arguments: str) -> str:
    """Output of `megatron-entropic ARGUMENTS`, errors included."""
    command = [sys.executable, "-m", "megatron_entropic.cli", *arguments.split()]
    done = subprocess.run(command, cwd=FOLDER.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout


def write() -> None:
    """Puts the lines into the recipes, the table and the commands' outputs into the pages."""
    for name in names():
        path, needed = FOLDER / f"{name}.py", line(name)
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(LINE.findall(text)[0], needed, 1), encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda _: table(), PAGE.read_text(encoding="utf-8"), count=1), encoding="utf-8")
    page = LAYOUT_PAGE.read_text(encoding="utf-8")
    filled = SHOWN.sub(lambda found: f"$ megatron-entropic {found[1]}\n{shown_output(found[1])}", page)
    LAYOUT_PAGE.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    write() if sys.argv[1:] == ["--write"] else print(table())
