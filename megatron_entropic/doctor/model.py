"""Whether a model can be read here, and whether it is the same as elsewhere."""

import hashlib
from pathlib import Path

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.check import check_companions, check_hf_dir


def model_problem(path: Path) -> str | None:
    """The defect of a model (model.hf_path of a run) in one line, or None. Reads headers, and the end of every weight file."""
    model = model_folder(path)
    try:
        arch = Architecture.from_hf(model.hf_dir)
        if model.is_distributed:
            check_companions(model.hf_dir, arch)
        else:
            check_hf_dir(model.hf_dir, arch)
        for file in sorted(file for file in model.weights.iterdir() if file.suffix in (".safetensors", ".distcp")):
            with file.open("rb") as weights:
                weights.seek(-1, 2)
                weights.read(1)
    except (OSError, ValueError, RuntimeError) as error:
        return "model: " + " ".join(str(error).split())
    return None


def model_fingerprint(path: Path) -> str:
    """A short checksum of the names and sizes of a model's files and of its config.json."""
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
    config = model_folder(path).hf_dir / "config.json"
    digest.update(config.read_bytes() if config.is_file() else b"")
    return digest.hexdigest()[:12]
