"""Finding the checkpoint a run resumes from: the latest, checked byte by byte, or an older one if that was allowed."""

import logging
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_entropic.checkpoint_files.manifest import damaged_files, read_manifest
from megatron_entropic.checkpoint_files.store import CheckpointStore, CheckpointStoreError, step_of
from megatron_entropic.config import Config
from megatron_entropic.config.loading import to_dict
from megatron_entropic.config.resume import differences, refuse
from megatron_entropic.distributed.parallel import Parallel
from megatron_entropic.distributed.rank_zero import from_rank_zero, meet

logger = logging.getLogger(__name__)

FORMAT = 2
_READABLE = (1, 2)
"""Format 1 had neither hf/ nor trackers."""


def find_checkpoint(
    cfg: Config, parallel: Parallel, store: CheckpointStore, *, allow_fallback: bool, allow_change: bool = False
) -> tuple[Path, dict[str, Any]] | None:
    """(folder, state) of the checkpoint to resume from; None when the run has none yet. Collective over the world.

    When the latest is damaged, the newest intact one before it is taken if `allow_fallback`, with a warning.
    Raises CheckpointStoreError naming every damaged file, SettingsDifferenceError showing the settings that do not fit.
    """
    name, problems = from_rank_zero(parallel, _latest, store, doing="the latest checkpoint to be found")
    if name is not None and not problems:
        problems = _problems(parallel, store, name)
    if problems:
        name = _fallback(allow_fallback, parallel, store, name, problems)
    if name is None:
        return None
    return from_rank_zero(parallel, _state, cfg, store, name, allow_change, doing="the checkpoint's state to be read")


def _latest(store: CheckpointStore) -> tuple[str | None, list[str]]:
    try:
        return store.latest(), []
    except CheckpointStoreError as error:
        return None, [str(error)]


def _problems(parallel: Parallel, store: CheckpointStore, name: str) -> list[str]:
    """Problems of a checkpoint, the same on all ranks. Each rank reads its part of the files."""
    expected, problems = from_rank_zero(parallel, read_manifest, store.folder / name, doing="the checkpoint's manifest to be read")
    mine = dict(sorted(expected.items())[parallel.rank :: parallel.world_size])
    damaged_here = damaged_files(store.folder / name, mine)
    meet(parallel, "every rank to check its part of the checkpoint's files")
    found: list[Any] = [None] * parallel.world_size
    dist.all_gather_object(found, damaged_here)
    damaged = sorted(problem for of_rank in found for problem in of_rank)
    return [f"{store.folder / name}: {problem}" for problem in [*problems, *damaged]]


def _fallback(allowed: bool, parallel: Parallel, store: CheckpointStore, latest: str | None, problems: list[str]) -> str:
    """The newest intact checkpoint before the damaged `latest` (of all, when it is not known which that is).

    Raises CheckpointStoreError on rank 0 (RankZeroError on the others) when there is none, or it was not allowed.
    """
    names = from_rank_zero(
        parallel, lambda: store.before(latest) if latest else store.names()[::-1], doing="the checkpoints before it to be listed"
    )
    for name in names:
        worse = _problems(parallel, store, name)
        if not worse:
            from_rank_zero(parallel, _take, allowed, store, latest, name, problems, doing="the checkpoint to resume from to be chosen")
            return str(name)
        problems = problems + worse
    return from_rank_zero(parallel, _refuse, problems, doing="the checkpoint to resume from to be chosen")


def _take(allowed: bool, store: CheckpointStore, latest: str | None, name: str, problems: list[str]) -> None:
    first = step_of(name) + 1  # counted from 1, as on the terminal
    lost = f"steps {first} to {step_of(latest)}" if latest else f"every step from {first} on"
    listed = "\n  ".join(["the latest checkpoint is damaged:", *problems])
    if not allowed:
        raise CheckpointStoreError(
            f"{listed}\n{store.folder / name} is intact: pass --allow-fallback to resume from it; {lost} are trained again"
        )
    logger.warning("WARNING: %s\nfalling back to %s: %s are lost and trained again", listed, store.folder / name, lost)
    store.point_to(name)


def _refuse(problems: list[str]) -> str:
    raise CheckpointStoreError("\n  ".join(["the latest checkpoint is damaged, and there is no intact one before it:", *problems]))


def _state(cfg: Config, store: CheckpointStore, name: str, allow_change: bool) -> tuple[Path, dict[str, Any]]:
    """(folder, state) of an intact checkpoint; settings that changed are logged, and refused where the state does not fit them."""
    folder, state = store.folder / name, store.state(name)
    if state.get("format") not in _READABLE:
        raise CheckpointStoreError(f"{folder}: checkpoint format {state.get('format')}; this version reads {_READABLE}")
    changed = differences(state["settings"], to_dict(cfg))
    if changed:
        logger.info("settings that changed since %s:\n%s", folder, "\n".join(map(str, changed)))
    ahead = bool(state["settings"].get("rollout", {}).get("max_staleness"))
    refuse(changed, folder, allow_change=allow_change, ahead=ahead)
    return folder, state
