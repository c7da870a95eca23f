"""A run's checkpoints as folders: whole or not there, checked by content, found by name.

    checkpoints/step-000060/            everything after 60 steps
        policy/                         weights and optimizer (policy/checkpoint.py)
        hf/                             config.json, tokenizer and so on of the model, byte for byte: an export needs nothing else
        state.json                      step, updates, controller, settings: plain numbers and words
        manifest.json                   size and SHA-256 of every other file, written last
    checkpoints/latest                  name of the newest whole checkpoint
    checkpoints/.step-000080.partial    one being written, or left behind by a kill; the next save removes it

One process (rank 0) calls this; ranks write under `policy/` in between.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_entropic.errors import ReportedError
from megatron_entropic.whole_file import write_whole

MANIFEST, STATE, LATEST = "manifest.json", "state.json", "latest"
_NAME = re.compile(r"step-(\d{6,})")
_BLOCK = 1 << 20


class CheckpointStoreError(ReportedError, RuntimeError):
    """A training checkpoint is missing, incomplete or damaged; the message names the file."""


class CheckpointStore:
    """The checkpoints under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, step: int, companions: Mapping[str, bytes]) -> Path:
        """The folder in which the checkpoint of `step` is to be written: `companions` in hf/ by name, and an empty policy/.

        Removes what a killed save left behind.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".step-*.partial"):
            shutil.rmtree(leftover)
        partial = self.folder / f".step-{step:06d}.partial"
        for subfolder in ("policy", "hf"):
            (partial / subfolder).mkdir(parents=True)
        for name, content in companions.items():
            (partial / "hf" / name).write_bytes(content)
        return partial

    def publish(self, partial: Path, state: dict[str, Any], keep: int) -> Path:
        """Adds state and manifest, syncs everything, gives the checkpoint its name, and only then lets `latest` name it.

        Keeps the newest `keep` checkpoints (0: all). Returns the checkpoint's folder.
        """
        (partial / STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        files = {str(path.relative_to(partial)): _fingerprint(path) for path in _files(partial)}
        (partial / MANIFEST).write_text(json.dumps(files, indent=1) + "\n", encoding="utf-8")
        for path in [*_files(partial), partial / "policy", partial / "hf", partial]:
            _sync(path)
        final = self.folder / partial.name.removeprefix(".").removesuffix(".partial")
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        _sync(self.folder)
        write_whole(self.folder / LATEST, f"{final.name}\n".encode())
        _sync(self.folder)
        for old in self.names()[:-keep] if keep else []:
            shutil.rmtree(self.folder / old)
        return final

    def names(self) -> list[str]:
        """Names of all checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted((path.name for path in self.folder.iterdir() if _NAME.fullmatch(path.name)), key=step_of)

    def latest(self) -> str | None:
        """Name of the newest whole checkpoint, or None when there is none yet."""
        path = self.folder / LATEST
        if not path.is_file():
            return None
        name = path.read_text(encoding="utf-8").strip()
        if not _NAME.fullmatch(name):
            raise CheckpointStoreError(f"{path}: names {name[:80]!r}, which is no checkpoint; write one of {self.names()} into it")
        return name

    def read(self, name: str) -> tuple[Path, dict[str, Any]]:
        """(folder of the policy, state) of a checkpoint, every byte checked against the manifest.

        Raises CheckpointStoreError naming every file that is missing, of another size or of other content.
        """
        folder = self.folder / name
        if problems := check(folder):
            raise CheckpointStoreError(f"{folder}: " + "; ".join(problems))
        return folder / "policy", json.loads((folder / STATE).read_text(encoding="utf-8"))


def step_of(name: str) -> int:
    """Steps done at a checkpoint, from its name."""
    match = _NAME.fullmatch(name)
    assert match is not None, name
    return int(match[1])


def check(folder: Path) -> list[str]:
    """What is wrong with a checkpoint's files; empty when they are exactly what was written."""
    if not folder.is_dir():
        return ["no such checkpoint"]
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest.items()}
    except OSError as error:
        return [f"{MANIFEST} cannot be read: {error.strerror}"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST} is damaged: {error}"]
    found = {str(path.relative_to(folder)): path for path in _files(folder) if path.name != MANIFEST}
    problems = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    problems += [f"{name} does not belong there" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        size, digest = expected[name]
        actual = found[name].stat().st_size
        if actual != size:
            problems.append(f"{name} has {actual} bytes instead of {size}")
        elif _fingerprint(found[name])["sha256"] != digest:
            problems.append(f"{name} has other content than was written (checksum)")
    return problems


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
