"""A directory that is written file by file, in parallel, can be resumed after a kill, and appears whole.

OUT/                        appears last, by renaming
.OUT.partial/               meanwhile
    journal.jsonl           first the plan's fingerprint, then a line for every finished file: name, bytes, SHA-256, contents
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from megatron_entropic.hf.headers import CheckpointError
from megatron_entropic.system.atomic_files import sync_to_disk

JOURNAL = "journal.jsonl"


class OutputFile:
    """A file written front to back, hashed on the way; OSErrors name the path."""

    def __init__(self, path: Path, progress: Callable[[int], object]) -> None:
        self._path = path
        self._progress = progress
        self._digest = hashlib.sha256()
        self._file = path.open("wb", buffering=0)
        self.position = 0

    def write(self, content: bytes | memoryview) -> None:
        view = memoryview(content)
        self._digest.update(view)
        try:
            while view:
                count = self._file.write(view) or 0
                view = view[count:]
                self.position += count
                self._progress(count)
        except OSError as error:
            raise OSError(error.errno, f"{os.strerror(error.errno or 0)}, {self.position} bytes into", str(self._path)) from error

    def finish(self) -> dict[str, Any]:
        """Brings the file to the disk; returns its size and checksum."""
        os.fsync(self._file.fileno())
        self.close()
        return {"bytes": self.position, "sha256": self._digest.hexdigest()}

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class Job:
    """One file of the output: its name relative to the directory, its (approximate) size, and who writes it."""

    name: str
    nbytes: int
    write: Callable[[OutputFile], Any]
    """Returns what is to be remembered of the file, as JSON."""


class OutputDirectory:
    """The directory `out` in the making; a context manager that holds its lock.

    What a kill, an interruption or a full disk ends can be resumed; a refusal (CheckpointError), or an end before any file was
    finished, leaves nothing behind.

    Raises FileExistsError when `out` is there already, CheckpointError when another process is writing it or what a killed one
    left behind was for another conversion (`fingerprint` tells).
    """

    def __init__(self, out: Path, fingerprint: dict[str, Any]) -> None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(f"{out}: exists already; remove it or choose another directory")
        self.out = out
        self.folder = out.with_name(f".{out.name}.partial")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._journal = (self.folder / JOURNAL).open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CheckpointError(f"{self.folder}: another process is writing this directory") from error
        self.done = self._read_journal(json.loads(json.dumps(fingerprint)))

    def run(self, jobs: Sequence[Job], workers: int, title: str) -> dict[str, Any]:
        """Writes the files that are not there yet, `workers` at a time; returns by name what each job returned, now or earlier."""
        missing = [job for job in jobs if job.name not in self.done]
        self._check_space(sum(job.nbytes for job in missing))
        total = sum(job.nbytes for job in jobs)
        with tqdm(total=total, initial=total - sum(job.nbytes for job in missing), desc=title, unit="B", unit_scale=True) as bar:
            pool = ThreadPoolExecutor(max_workers=workers)
            try:
                for finished in as_completed([pool.submit(self._write, job, bar.update) for job in missing]):
                    self._remember(finished.result())
            finally:
                pool.shutdown(cancel_futures=True)
        return {job.name: self.done[job.name]["contents"] for job in jobs}

    def publish(self) -> Path:
        """Removes the journal, syncs, and gives the directory its name."""
        (self.folder / JOURNAL).unlink()
        for path in sorted(self.folder.rglob("*"), reverse=True):
            sync_to_disk(path)
        sync_to_disk(self.folder)
        if self.out.exists():
            self.out.rmdir()  # empty, as checked
        os.replace(self.folder, self.out)
        sync_to_disk(self.out.parent)
        return self.out

    def _write(self, job: Job, progress: Callable[[int], object]) -> dict[str, Any]:
        path = self.folder / job.name
        path.parent.mkdir(parents=True, exist_ok=True)
        file = OutputFile(path, progress)
        try:
            contents = job.write(file)
            return {"name": job.name, **file.finish(), "contents": contents}
        finally:
            file.close()

    def _remember(self, record: dict[str, Any]) -> None:
        self.done[record["name"]] = record
        self._journal.write(json.dumps(record) + "\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def _read_journal(self, fingerprint: dict[str, Any]) -> dict[str, dict[str, Any]]:
        self._journal.seek(0)
        lines = [line for line in self._journal.read().split("\n")[:-1] if line]  # a torn last line is of a file not finished
        self._journal.truncate(sum(len(line.encode()) + 1 for line in lines))
        if not lines:
            self._journal.write(json.dumps(fingerprint) + "\n")
            self._journal.flush()
            return {}
        if json.loads(lines[0]) != fingerprint:
            raise CheckpointError(
                f"{self.folder}: left behind by another conversion (other source, options or version); remove it and start again"
            )
        records = [json.loads(line) for line in lines[1:]]
        return {record["name"]: record for record in records if _size(self.folder / record["name"]) == record["bytes"]}

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(
                f"{self.folder}: {needed / 1e9:.1f} GB are to be written, {free / 1e9:.1f} GB are free; make room and run this again"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None and (isinstance(error, CheckpointError) or not self.done):
            # The same conversion would be refused again, and another one (the wider type that was asked for) could not write here.
            shutil.rmtree(self.folder, ignore_errors=True)
        self._journal.close()


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
