"""Steps lost by a run that ended without saving, and how to resume it."""

from pathlib import Path
from shlex import quote

from megatron_entropic.checkpoint_files.store import CheckpointStore, CheckpointStoreError, step_of


def last_written(run_dir: Path) -> tuple[int, int] | None:
    """A stamp that changes whenever a run writes metrics; None before the first. A start that fails in its checks leaves it."""
    metrics = run_dir / "metrics.jsonl"
    return (metrics.stat().st_mtime_ns, metrics.stat().st_size) if metrics.exists() else None


def lost_steps(run_dir: Path) -> str:
    """One line for the terminal; empty before the first step, when nothing was lost."""
    metrics = run_dir / "metrics.jsonl"
    done = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    resume = f"megatron-entropic train {quote(str(run_dir))} --resume"
    try:
        latest = CheckpointStore(run_dir / "checkpoints").latest()
    except CheckpointStoreError as error:
        return f"{error}; {resume} --allow-fallback resumes from the newest intact checkpoint"
    saved = step_of(latest) if latest else 0
    if done <= saved:
        return f"nothing is lost; resume with: {resume}" if saved else ""
    kept = f"of {done} steps the last checkpoint holds {saved}" if saved else f"{done} steps are lost: there is no checkpoint yet"
    return f"{kept}; {'resume' if saved else 'start over'} with: {resume}"
