"""comparison.html: several runs in one page, in the folder of the first. The runs' own reports stay as they are."""

import os
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from megatron_entropic.observability.explorer import make_explorer
from megatron_entropic.observability.pages import render_page
from megatron_entropic.observability.plotting.plots import compare_entropy, draw_comparison
from megatron_entropic.observability.plotting.style import themed_svg
from megatron_entropic.observability.run_data import load_run
from megatron_entropic.observability.summary import summarise_run
from megatron_entropic.system.atomic_files import write_atomically


def write_comparison(run_dir: str | os.PathLike[str], others: Sequence[str | os.PathLike[str]]) -> Path:
    """Writes run_dir/comparison.html and run_dir/plots/compare.png about this run and `others`; returns the page's path.

    Raises as load_run; ValueError when a run has no steps.
    """
    paths = [Path(run_dir), *map(Path, others)]
    runs = _labelled(paths)
    compare_entropy(runs, paths[0] / "plots" / "compare.png")
    loaded = {label: load_run(path) for label, path in runs.items()}
    page = render_page(
        "comparison.html.j2",
        name=next(iter(runs)),
        comparison=Markup(themed_svg(draw_comparison(runs), "compare")),
        compared={label: summarise_run(run) for label, run in loaded.items()},
        explorer=make_explorer(loaded),
    )
    return write_atomically(paths[0] / "comparison.html", page.encode())


def _labelled(paths: Sequence[Path]) -> dict[str, Path]:
    """The runs by their folders' names; where two share one, by as much of their paths as tells all apart."""
    folders = [path.resolve() for path in paths]
    names = [folder.name for folder in folders]
    if len(set(names)) < len(set(folders)):
        above = os.path.commonpath([folder.parent for folder in folders])
        names = [str(folder.relative_to(above)) for folder in folders]
    # matplotlib leaves what begins with _ out of its legends
    return {f"./{name}" if name.startswith("_") else name: path for name, path in zip(names, paths, strict=True)}
