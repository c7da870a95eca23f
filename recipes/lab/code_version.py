"""Version of the code that made a result."""

import subprocess
from pathlib import Path

from megatron_entropic.system.shipped_files import version_text

ROOT = Path(__file__).resolve().parents[2]


def code_version() -> str:
    """The commit of the checkout, with `-dirty` when tracked files differ from it; the version where there is no checkout or git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return version_text()
    return f"commit {found}"
