"""Index of a run's recorded rollouts: an SQLite file with full-text search, brought up to date step by step.

    $XDG_CACHE_HOME/megatron-entropic/view/HASH.sqlite    of the folder with that path; removed, it is made again

A step's rows appear in one transaction. Rows of a step that was recorded again are replaced; its words may stay behind in the full-text
tables, under ids that no row has any more. The run's folder is only read.
"""

import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_entropic.rollout.recording import RecordedRollout, read_rollouts, recorded_file, recorded_steps

_VERSION = 1
_SCHEMA = """
CREATE TABLE steps (step INTEGER PRIMARY KEY, stamp TEXT NOT NULL, rollouts INTEGER NOT NULL, error TEXT);
CREATE TABLE prompts (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, text TEXT NOT NULL);
CREATE VIRTUAL TABLE prompt_parts USING fts5(text, content='', tokenize='trigram');
CREATE TABLE rollouts (
    id INTEGER PRIMARY KEY AUTOINCREMENT, step INTEGER NOT NULL, prompt_index INTEGER NOT NULL, sample_index INTEGER NOT NULL,
    prompt_id INTEGER NOT NULL, reward REAL NOT NULL, length INTEGER NOT NULL
);
CREATE INDEX by_step ON rollouts (step, prompt_index);
CREATE INDEX by_prompt ON rollouts (prompt_id, step);
CREATE INDEX by_number ON rollouts (prompt_index, step);
CREATE VIRTUAL TABLE response_words USING fts5(text, content='', tokenize='unicode61');
"""
_FILE_SUFFIXES = ("", "-wal", "-shm")


@dataclass(frozen=True)
class IndexProgress:
    """How far the index is: of `recorded` steps the first `indexed`, with `rollouts` in them; what is wrong, by step."""

    recorded: int
    indexed: int
    rollouts: int
    first: int | None
    last: int | None
    longest: int
    errors: dict[int, str]


class Index:
    """Of the rollouts/ folder `rollouts_dir`, which need not exist yet. Any thread may use it; each takes connections of its own."""

    def __init__(self, rollouts_dir: Path, path: Path | None = None) -> None:
        self.rollouts_dir = rollouts_dir
        self.path = path or index_path(rollouts_dir)
        self._recorded = 0
        self._make()

    def _make(self) -> None:
        """Makes the file where there is none that can be used."""
        try:
            with self.connected() as connection:
                if connection.execute("PRAGMA user_version").fetchone()[0] == _VERSION:
                    return
        except sqlite3.DatabaseError:  # no index at all, or a damaged one: everything in it can be made again
            pass
        self._remove()
        with self.connected() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")

    def _remove(self) -> None:
        for suffix in _FILE_SUFFIXES:
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    @contextmanager
    def connected(self) -> Iterator[sqlite3.Connection]:
        """A connection in autocommit, closed afterwards."""
        connection = sqlite3.connect(self.path, timeout=60.0, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA cache_size=-65536")
            yield connection
        finally:
            connection.close()

    def refresh(self, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Indexes what was recorded, recorded again or removed since; whether anything was. Makes a damaged index anew."""
        try:
            return self._refresh(stopped)
        except sqlite3.OperationalError:  # a full disk, a lock: making it anew would not help
            raise
        except sqlite3.DatabaseError:
            self._remove()
            self._make()
            return self._refresh(stopped)

    def _refresh(self, stopped: Callable[[], bool]) -> bool:
        stamps = self._stamps()
        self._recorded = len(stamps)
        with self.connected() as connection:
            known = dict(connection.execute("SELECT step, stamp FROM steps"))
            gone = [step for step in known if step not in stamps]
            for step in gone:
                with _transaction(connection):
                    _forget(connection, step)
            changed = [step for step, stamp in stamps.items() if known.get(step) != stamp]
            for step in changed:
                if stopped():
                    break
                self._index(connection, step, stamps[step])
        return bool(changed or gone)

    def _stamps(self) -> dict[int, str]:
        """By recorded step, what changes when its file does."""
        stamps = {}
        for step in recorded_steps(self.rollouts_dir) if self.rollouts_dir.is_dir() else ():
            try:
                status = recorded_file(self.rollouts_dir, step).stat()
            except FileNotFoundError:  # removed just now
                continue
            stamps[step] = f"{status.st_mtime_ns} {status.st_size} {status.st_ino}"
        return stamps

    def _index(self, connection: sqlite3.Connection, step: int, stamp: str) -> None:
        records: list[RecordedRollout] = []
        error = None
        try:
            records = read_rollouts(self.rollouts_dir, step)
        except (ValueError, OSError) as problem:
            error = str(problem)
        with _transaction(connection):
            _forget(connection, step)
            _insert(connection, step, records)
            connection.execute("INSERT INTO steps VALUES (?, ?, ?, ?)", (step, stamp, len(records), error))

    def progress(self) -> IndexProgress:
        """How far the index is."""
        with self.connected() as connection:
            indexed, rollouts, first, last = connection.execute(
                "SELECT count(*), coalesce(sum(rollouts), 0), min(step), max(step) FROM steps"
            ).fetchone()
            longest = connection.execute("SELECT coalesce(max(length), 0) FROM rollouts").fetchone()[0]
            errors = dict(connection.execute("SELECT step, error FROM steps WHERE error IS NOT NULL ORDER BY step LIMIT 20"))
        return IndexProgress(max(self._recorded, indexed), indexed, rollouts, first, last, longest, errors)


def index_path(rollouts_dir: Path) -> Path:
    """Where the index of that folder lies: in the user's cache, or for lack of one among the temporary files."""
    digest = hashlib.sha256(os.fsencode(rollouts_dir.resolve())).hexdigest()[:24]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "megatron-entropic" / "view"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(home, os.W_OK):
            return home / f"{digest}.sqlite"
    except OSError:  # no home, or one that cannot be written
        pass
    return Path(tempfile.mkdtemp(prefix="megatron-entropic-view-")) / f"{digest}.sqlite"


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _forget(connection: sqlite3.Connection, step: int) -> None:
    connection.execute("DELETE FROM rollouts WHERE step = ?", (step,))
    connection.execute("DELETE FROM steps WHERE step = ?", (step,))


def _insert(connection: sqlite3.Connection, step: int, records: list[RecordedRollout]) -> None:
    prompt_ids: dict[str, int] = {}
    for record in records:
        prompt, rollout = record.problem.prompt, record.rollout
        if prompt not in prompt_ids:
            prompt_ids[prompt] = _prompt_id(connection, prompt)
        row = (step, rollout.prompt_index, rollout.sample_index, prompt_ids[prompt], record.reward, len(rollout.response_ids))
        cursor = connection.execute(
            "INSERT INTO rollouts (step, prompt_index, sample_index, prompt_id, reward, length) VALUES (?, ?, ?, ?, ?, ?)", row
        )
        connection.execute("INSERT INTO response_words (rowid, text) VALUES (?, ?)", (cursor.lastrowid, storable(rollout.text)))


def _prompt_id(connection: sqlite3.Connection, prompt: str) -> int:
    text = storable(prompt)
    digest = hashlib.sha256(text.encode()).digest()
    found = connection.execute("SELECT id FROM prompts WHERE digest = ?", (digest,)).fetchone()
    if found:
        return int(found[0])
    row = connection.execute("INSERT INTO prompts (digest, text) VALUES (?, ?)", (digest, text)).lastrowid
    connection.execute("INSERT INTO prompt_parts (rowid, text) VALUES (?, ?)", (row, text))
    assert row is not None
    return row


def storable(text: str) -> str:
    """`text` as SQLite takes it: without lone surrogates, and without zero bytes, at which its tokenizers may end."""
    return text.encode("utf-8", "replace").decode().replace("\0", " ")
