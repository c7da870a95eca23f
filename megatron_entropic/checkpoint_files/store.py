"""A run's checkpoints as folders: whole or not there, checked by content, found by name.

    checkpoints/step-000060/            everything after 60 steps
        policy/                         weights and optimizer (checkpoint/policy_state.py)
        hf/                             config.json, tokenizer and so on of the model, byte for byte: an export needs nothing else
        state.json                      step, updates, controller, trackers, settings: plain numbers and words
        manifest.json                   size and SHA-256 of every other file, written last
    checkpoints/latest                  name of the newest complete checkpoint, SHA-256 of its manifest
    checkpoints/best                    link to the best one by validation.best, if that is set; it is never removed
    checkpoints/.step-000080.3.partial  one being written by the run's third owner, or left behind by a kill; the next save removes it

One process (rank 0) calls this; ranks write under `policy/` in between.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_entropic.checkpoint_files.manifest import MANIFEST, Fingerprint, files_below, fingerprint, write_manifest
from megatron_entropic.errors import ReportedError
from megatron_entropic.system.atomic_files import sync_to_disk, write_atomically
from megatron_entropic.system.folder_lock import Fence

STATE, LATEST, BEST = "state.json", "latest", "best"
POLICY, COMPANIONS = "policy", "hf"
_NAME = re.compile(r"step-(\d{6,})")
_LATEST = re.compile(r"(step-\d{6,})(?: ([0-9a-f]{64}))?\n?")


class CheckpointStoreError(ReportedError, RuntimeError):
    """A training checkpoint is missing, incomplete or damaged, or cannot be written; the message names the file."""


class CheckpointStore:
    """The checkpoints under `folder`. Nothing is written, named or removed past the `fence` of a run that was taken over."""

    def __init__(self, folder: Path, fence: Fence | None = None) -> None:
        self.folder = folder
        self.fence = fence or Fence(folder.parent, "")

    def begin(self, step: int, state: Mapping[str, Any], companions: Mapping[str, bytes]) -> Path:
        """The folder in which the checkpoint of `step` is to be written: state, `companions` in hf/ by name, an empty policy/.

        Removes what a killed save left behind. Raises OSError naming a file that cannot be written, FolderOwnedError for a run
        that another process has taken over.
        """
        self.fence.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".step-*.partial"):
            shutil.rmtree(leftover)
        partial = self.folder / f".{name_of(step)}.{self.fence.generation}.partial"
        for subfolder in (POLICY, COMPANIONS):
            (partial / subfolder).mkdir(parents=True)
        write_atomically(partial / STATE, (json.dumps(state, indent=1) + "\n").encode())
        for name, content in companions.items():
            write_atomically(partial / COMPANIONS / name, content)
        return partial

    def publish(self, partial: Path, policy_files: Mapping[str, Fingerprint], keep: int, *, best: bool = False) -> Path:
        """Adds the manifest, gives the checkpoint its name, and only then lets `latest` name it. All is synced on the way.

        `policy_files` are what the ranks wrote (and synced) under policy/, by name, with the fingerprints they took; whatever
        else is there is fingerprinted here. Keeps the newest `keep` checkpoints up to this one (0: all; a later one is of
        another history, see `before`, and not touched), and the `best`, which this one may be. Returns the checkpoint's folder.
        Raises FolderOwnedError as begin.
        """
        known = {f"{POLICY}/{name}": fingerprint for name, fingerprint in policy_files.items()}
        if lost := [name for name, fingerprint in known.items() if _size(partial / name) != fingerprint["bytes"]]:
            raise CheckpointStoreError(
                f"{partial}: {', '.join(lost)}: written by a rank, not found here; do all nodes share this folder?"
            )
        write_manifest(partial, known)
        ours = [path for name, path in files_below(partial).items() if name not in known]
        for path in [*ours, partial / MANIFEST, partial / POLICY, partial / COMPANIONS, partial]:
            sync_to_disk(path)
        self.fence.check()
        final = self.folder / partial.name.split(".")[1]
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        sync_to_disk(self.folder)
        self.point_to(final.name)
        if best:
            self.point_best_to(final.name)
        for old in self.before(final.name)[keep - 1 :] if keep else []:
            if old != self.best():
                shutil.rmtree(self.folder / old)
        return final

    def point_to(self, name: str) -> None:
        """Makes `name` the latest checkpoint."""
        content = f"{name} {fingerprint(self.folder / name / MANIFEST)['sha256']}\n"
        write_atomically(self.folder / LATEST, content.encode())
        sync_to_disk(self.folder)

    def point_best_to(self, name: str | None) -> None:
        """Makes `name` the best checkpoint; None: there is none. Raises CheckpointStoreError when something else has that name."""
        link, temporary = self.folder / BEST, self.folder / f".{BEST}.tmp"
        if link.is_dir() and not link.is_symlink():
            self._remove_copied_link(link)
        temporary.unlink(missing_ok=True)
        if name is None:
            link.unlink(missing_ok=True)
        else:
            temporary.symlink_to(name)
            os.replace(temporary, link)
        if self.folder.is_dir():
            sync_to_disk(self.folder)

    def _remove_copied_link(self, folder: Path) -> None:
        """Removes what a copy of the run that follows links made of one: the checkpoint that it named, once more."""
        manifest = folder / MANIFEST
        content = manifest.read_bytes() if manifest.is_file() else None
        if not any(content == (self.folder / name / MANIFEST).read_bytes() for name in self.names()):
            raise CheckpointStoreError(f"{folder}: is to be a link to the best checkpoint, and is something else; move it away")
        shutil.rmtree(folder)

    def best(self) -> str | None:
        """Name of the best checkpoint; None when none is named, or the one that is named is not there."""
        link = self.folder / BEST
        return link.readlink().name if link.is_symlink() and link.exists() else None

    def discard(self, partial: Path) -> None:
        """Removes a checkpoint that could not be written, as far as that is possible: the disk may be full, or read-only."""
        shutil.rmtree(partial, ignore_errors=True)

    def names(self) -> list[str]:
        """Names of all checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted((path.name for path in self.folder.iterdir() if _NAME.fullmatch(path.name)), key=step_of)

    def before(self, name: str) -> list[str]:
        """Names of the checkpoints of fewer steps, newest first. Those of more steps are left from before a fallback."""
        return [other for other in reversed(self.names()) if step_of(other) < step_of(name)]

    def latest(self) -> str | None:
        """Name of the newest complete checkpoint, or None when there is none yet.

        Without `latest` (a kill between the two renames) it is the newest by name, which only complete ones have. Raises
        CheckpointStoreError when `latest` does not name a checkpoint, or another one than was published under that name. The
        sum of its manifest may be left out by whoever edits `latest` by hand.
        """
        path = self.folder / LATEST
        if not path.is_file():
            return self.names()[-1] if self.names() else None
        content = path.read_bytes()[:200].decode(errors="replace")
        match = _LATEST.fullmatch(content)
        if match is None:
            raise CheckpointStoreError(f"{path}: names {content[:20]!r}, which is no checkpoint; write one of {self.names()} into it")
        name, manifest_sum = match.groups()
        manifest = self.folder / name / MANIFEST
        if manifest_sum and manifest.is_file() and fingerprint(manifest)["sha256"] != manifest_sum:
            raise CheckpointStoreError(f"{path} and {manifest} do not belong together: one of them is damaged")
        return name

    def state(self, name: str) -> dict[str, Any]:
        """state.json of a checkpoint that was found whole."""
        state: dict[str, Any] = json.loads((self.folder / name / STATE).read_text(encoding="utf-8"))
        return state


def name_of(step: int) -> str:
    """Name of the checkpoint after `step` steps."""
    return f"step-{step:06d}"


def step_of(name: str) -> int:
    """Steps done at a checkpoint, from its name."""
    match = _NAME.fullmatch(name)
    assert match is not None, name
    return int(match[1])


def _size(path: Path) -> int:
    """Size in bytes; -1 when it is not there."""
    return path.stat().st_size if path.is_file() else -1
