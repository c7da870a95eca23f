"""The SLURM version, and this process's allocation."""

import os
import shutil
import subprocess


def slurm_version() -> str | None:
    """SLURM's version, or None where there is no srun."""
    if shutil.which("srun") is None:
        return None
    done = subprocess.run(["srun", "--version"], capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip() or f"srun does not run: {done.stderr.strip().splitlines()[-1:]}"


def allocation() -> str | None:
    """The job this process belongs to, or None."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    return f"job {os.environ['SLURM_JOB_ID']} on {os.environ.get('SLURM_JOB_NODELIST', 'unknown nodes')}"
