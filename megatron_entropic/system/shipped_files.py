"""Location of the files that come with the project: in a checkout beside the package, installed by pip inside the packages."""

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
DISTRIBUTION = "megatron-entropic"


def models_folder() -> Path:
    """The folder of the tiny models."""
    installed = _PACKAGE / "models"
    return installed if installed.is_dir() else _PACKAGE.parent / "models"


def find_model(path: Path) -> Path:
    """`path` itself, or the shipped model when `path` is models/NAME of one and nothing lies there.

    So `models/tiny-decompose` is found from every folder, also where there is no checkout.
    """
    if path.is_absolute() or path.exists() or path.parts[:1] != ("models",) or len(path.parts) != 2:
        return path
    shipped = models_folder() / path.name
    return shipped if (shipped / "config.json").is_file() else path


def slurm_folder() -> Path:
    """The folder of the sbatch files, whose package stands above this one. Raises FileNotFoundError where it is not installed."""
    spec = importlib.util.find_spec("slurm")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if (Path(folder) / "train.sbatch").is_file():
            return Path(folder)
    raise FileNotFoundError("the sbatch files are not installed: no train.sbatch beside the module slurm")


def version_text() -> str:
    """Name and version, such as `megatron-entropic 0.1.0`."""
    try:
        return f"{DISTRIBUTION} {version(DISTRIBUTION)}"
    except PackageNotFoundError:
        return f"{DISTRIBUTION} (a checkout that is not installed)"
