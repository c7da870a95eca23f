"""Which checkpoint a path means: a Hugging Face directory, a distributed checkpoint, or a run's newest of either."""

from dataclasses import dataclass
from pathlib import Path

from megatron_entropic.checkpoint_store import CheckpointStore
from megatron_entropic.hf.directory import CONFIG_FILE
from megatron_entropic.hf.headers import CheckpointError


@dataclass(frozen=True)
class Located:
    """A checkpoint's folder and its parts."""

    path: Path
    """What was found for the path that was asked for."""
    weights: Path | None
    """Folder of the distributed weights; None for a Hugging Face directory."""
    companions: Path | None
    """Folder with config.json and tokenizer; None when the checkpoint does not bring them."""

    @property
    def is_hf(self) -> bool:
        return self.weights is None


def locate(path: Path) -> Located:
    """What `path` is. Of a run folder its latest checkpoint, or else its exported model.

    Raises CheckpointError saying what would have been one.
    """
    if (path / "checkpoints").is_dir() and (latest := CheckpointStore(path / "checkpoints").latest()):
        return locate(path / "checkpoints" / latest)
    if (path / "policy" / "metadata.json").is_file():
        companions = path / "hf"
        return Located(path, path / "policy", companions if (companions / CONFIG_FILE).is_file() else None)
    if (path / "metadata.json").is_file() and (path / ".metadata").is_file():
        return Located(path, path, None)
    if (path / CONFIG_FILE).is_file():
        return Located(path, None, path)
    if (path / "hf" / CONFIG_FILE).is_file():
        return Located(path / "hf", None, path / "hf")
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or directory")
    raise CheckpointError(
        f"{path}: no checkpoint: neither a Hugging Face directory (config.json), nor a distributed checkpoint (policy/metadata.json, "
        "or metadata.json and .metadata), nor a run folder (checkpoints/latest, or hf/)"
    )
