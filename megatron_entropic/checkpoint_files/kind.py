"""Which checkpoint a path means: a Hugging Face directory, a distributed checkpoint, or a run's newest of either."""

import re
from dataclasses import dataclass
from pathlib import Path

from megatron_entropic.checkpoint_files.store import CheckpointStore
from megatron_entropic.hf.directory import CONFIG_FILE
from megatron_entropic.hf.headers import CheckpointError

LATEST_ITERATION = "latest_checkpointed_iteration.txt"
"""What Megatron-LM calls the file that names the newest of its iter_0000100/, iter_0000200/, ..."""


@dataclass(frozen=True)
class Located:
    """A checkpoint's folder and its parts."""

    path: Path
    """What was found for the path that was asked for."""
    weights: Path | None
    """Folder of the distributed weights; None for a Hugging Face directory."""
    companions: Path | None
    """Folder with config.json and tokenizer; None when the checkpoint does not bring them."""


def locate(path: Path) -> Located:
    """What `path` is. Of a run folder its latest checkpoint, or else its exported model; of Megatron-LM's save folder the latest.

    Raises CheckpointError saying what would have been one.
    """
    if (path / "checkpoints").is_dir() and (latest := CheckpointStore(path / "checkpoints").latest()):
        return locate(path / "checkpoints" / latest)
    if (path / LATEST_ITERATION).is_file():
        return locate(_latest_iteration(path))
    if holds_distributed_weights(path / "policy"):
        companions = path / "hf"
        return Located(path, path / "policy", companions if (companions / CONFIG_FILE).is_file() else None)
    if holds_distributed_weights(path) and (path / ".metadata").is_file():
        return Located(path, path, None)
    if (path / CONFIG_FILE).is_file():
        return Located(path, None, path)
    if (path / "hf" / CONFIG_FILE).is_file():
        return Located(path / "hf", None, path / "hf")
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or directory")
    if iterations := _iterations(path):
        raise CheckpointError(f"{path}: a Megatron-LM save folder without {LATEST_ITERATION}; say which: {', '.join(iterations)}")
    raise CheckpointError(
        f"{path}: no checkpoint: neither a Hugging Face directory (config.json), nor a distributed checkpoint (policy/metadata.json, "
        f"or metadata.json and .metadata), nor a run folder (checkpoints/latest, or hf/), nor Megatron-LM's ({LATEST_ITERATION})"
    )


@dataclass(frozen=True)
class ModelFolder:
    """Where the parts of `model.hf_path` are."""

    hf_dir: Path
    """The folder with config.json and tokenizer; with the weights too, unless `is_distributed`."""
    weights: Path
    """The folder that the first weights are read from."""
    is_distributed: bool
    """Whether it is a distributed checkpoint: the weights in policy/, everything else in hf/."""


def model_folder(hf_path: Path) -> ModelFolder:
    """The parts of `model.hf_path`: a Hugging Face directory unless there is a distributed checkpoint; neither needs to be there."""
    if holds_distributed_weights(hf_path / "policy"):
        return ModelFolder(hf_path / "hf", hf_path / "policy", is_distributed=True)
    return ModelFolder(hf_path, hf_path, is_distributed=False)


def holds_distributed_weights(folder: Path) -> bool:
    """Whether the weights in a folder are a distributed checkpoint's, rather than safetensors."""
    return (folder / "metadata.json").is_file()


def _latest_iteration(path: Path) -> Path:
    """The folder in a Megatron-LM save folder that its tracker names: a number, or `release`."""
    words = (path / LATEST_ITERATION).read_text(encoding="utf-8", errors="replace").split()
    word = words[0] if words else ""
    folder = path / (f"iter_{int(word):07d}" if word.isdecimal() else word)
    if not word or folder.parent != path or not folder.is_dir():
        there = ", ".join(_iterations(path)) or "none"
        raise CheckpointError(f"{path / LATEST_ITERATION}: says {word[:20]!r}, for which there is no folder; there are: {there}")
    return folder


def _iterations(path: Path) -> list[str]:
    return sorted(folder.name for folder in path.iterdir() if re.fullmatch(r"iter_\d+|release", folder.name)) if path.is_dir() else []
