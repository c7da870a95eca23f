"""Whether a model can be read here, and whether it is the same as elsewhere."""

import hashlib
from pathlib import Path

from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.check import check_hf_dir


def model_problem(hf_dir: Path) -> str | None:
    """What is wrong with a model directory, in one line, or None. Reads headers, and the end of every weight file."""
    try:
        check_hf_dir(hf_dir, Architecture.from_hf(hf_dir))
        for file in sorted(hf_dir.glob("*.safetensors")):
            with file.open("rb") as weights:
                weights.seek(-1, 2)
                weights.read(1)
    except (OSError, ValueError, RuntimeError) as error:
        return "model: " + " ".join(str(error).split())
    return None


def model_fingerprint(hf_dir: Path) -> str:
    """A short checksum of the names and sizes of a model's files and of its config.json."""
    digest = hashlib.sha256()
    for file in sorted(path for path in hf_dir.glob("*") if path.suffix in (".json", ".safetensors")):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
    config = hf_dir / "config.json"
    digest.update(config.read_bytes() if config.is_file() else b"")
    return digest.hexdigest()[:12]
