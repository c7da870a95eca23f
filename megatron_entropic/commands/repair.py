"""`megatron-entropic repair RUN_DIR`: makes a run folder usable again that two processes wrote to, or whose disk lost something."""

import argparse
from pathlib import Path
from shlex import quote
from typing import Any

from megatron_entropic.checkpoint_files.manifest import check
from megatron_entropic.checkpoint_files.store import CheckpointStore, CheckpointStoreError, step_of
from megatron_entropic.errors import ReportedError
from megatron_entropic.observability.metrics_repair import repair_metrics
from megatron_entropic.system.folder_lock import Fence, FolderLock


class RepairError(ReportedError, RuntimeError):
    """A run folder that cannot be repaired; the message says what is in the way."""


def add_repair_command(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the command `repair`."""
    repair = commands.add_parser(
        "repair",
        allow_abbrev=False,
        help="repair the folder of a run that two processes wrote to",
        description="Makes `latest` name the newest intact checkpoint, and reduces metrics.jsonl to the one history that leads to it; "
        "the file as it was is kept beside it. A run that is still running is refused. Resume with `train RUN_DIR --resume`.",
    )
    repair.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    repair.set_defaults(command=_repair)


def _repair(options: argparse.Namespace) -> int:
    """Repairs a run folder and says what was done."""
    run_dir: Path = options.run_dir
    if not (run_dir / "config.yaml").is_file():
        raise RepairError(f"{run_dir} is not the folder of a run: it has no config.yaml")
    with FolderLock(run_dir, "the run") as lock:
        name = _mend_latest(CheckpointStore(run_dir / "checkpoints", Fence(run_dir, lock.token)))
        metrics = run_dir / "metrics.jsonl"
        if metrics.is_file():
            print(repair_metrics(metrics, step_of(name) if name else 0))
    print(f"resume with: megatron-entropic train {quote(str(run_dir))} --resume")
    return 0


def _mend_latest(store: CheckpointStore) -> str | None:
    """Name of the newest intact checkpoint up to the latest, which `latest` names from now on; None without checkpoints."""
    try:
        latest = store.latest()
    except CheckpointStoreError as error:
        print(error)
        latest = None
    candidates = [latest, *store.before(latest)] if latest else store.names()[::-1]
    for name in candidates:
        problems = check(store.folder / name)
        if not problems:
            if name != latest:
                store.point_to(name)
            print(f"the run resumes from {store.folder / name}")
            return name
        print(*(f"{store.folder / name}: {problem}" for problem in problems), sep="\n")
    if candidates:
        raise RepairError(f"{store.folder}: no checkpoint is intact")
    return None
