"""What a path of a source names, opened: a file by its first bytes, a folder by what lies in it, else a name on the hub.

What is compressed (gzip, Parquet) is unpacked once into a temporary file that has no name, so that it goes with the process.
"""

import gzip
import io
import json
import re
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

from megatron_entropic.tasks.data.stores import ArrowStore, JoinedStore, JsonLinesStore, Store

SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".parquet", ".arrow", ".feather", ".ipc")
"""Of the files that are taken from a folder."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_GZIP, _PARQUET, _ARROW_FILE, _ARROW_STREAM = b"\x1f\x8b", b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"


def open_store(name: str, *, split: str = "train", subset: str = "") -> Store:
    """The rows of `name`. Raises ValueError naming the file that cannot be read, or what there is instead."""
    path = Path(name).expanduser()
    if path.is_dir():
        return _open_folder(path, split)
    if path.exists():
        return open_file(path)
    if _HUB_NAME.fullmatch(name) and not name.endswith((*SUFFIXES, ".json", ".gz")):
        from megatron_entropic.tasks.data.hub import open_hub

        return open_hub(name, split=split, subset=subset)
    raise ValueError(f"{path}: no such file or folder")


def open_file(path: Path) -> Store:
    """The rows of a file, by its first bytes. Raises ValueError naming it."""
    if not path.is_file():
        raise ValueError(f"{path}: is no file")
    with path.open("rb") as raw:
        head = raw.read(8)
    if head.startswith(_PARQUET):
        return _open_parquet(path)
    if head.startswith((_ARROW_FILE, _ARROW_STREAM)):
        return _open_arrow(path, stream=head.startswith(_ARROW_STREAM))
    if head.startswith(_GZIP):
        return JsonLinesStore(path, _unpacked(path))
    with path.open("rb") as file:
        return JsonLinesStore(path, file)


def _unpacked(path: Path) -> io.BufferedIOBase:
    spool = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the rows that are mapped from it
    try:
        with gzip.open(path) as file:
            shutil.copyfileobj(file, spool, 1 << 20)
    except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
        raise ValueError(f"{path}: a damaged gzip file ({problem}); copy it again") from problem
    spool.flush()
    return spool


def _open_arrow(path: Path, *, stream: bool) -> Store:
    import pyarrow as pa

    try:
        mapped = pa.memory_map(str(path))
        reader = pa.ipc.open_stream(mapped) if stream else pa.ipc.open_file(mapped)
        batches = list(reader) if stream else [reader.get_batch(number) for number in range(reader.num_record_batches)]
        return ArrowStore(path, batches)
    except (pa.ArrowException, OSError, EOFError) as problem:
        raise ValueError(f"{path}: a damaged Arrow file ({_line(problem)}); copy it again") from problem


def _open_parquet(path: Path) -> Store:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, memory_map=True)
        spool = tempfile.TemporaryFile()  # noqa: SIM115 - as above
        with pa.ipc.new_stream(spool, file.schema_arrow) as writer:  # in which a column's dictionary may change on the way
            for batch in file.iter_batches():
                writer.write_batch(batch)
        spool.flush()
        pa.default_memory_pool().release_unused()
        mapped = pa.memory_map(f"/proc/self/fd/{spool.fileno()}")
        return ArrowStore(path, list(pa.ipc.open_stream(mapped)))
    except (pa.ArrowException, EOFError) as problem:
        raise ValueError(f"{path}: a damaged Parquet file ({_line(problem)}); copy it again") from problem
    except OSError as problem:
        raise ValueError(f"{path}: cannot be read or unpacked into {tempfile.gettempdir()}: {_line(problem)}") from problem


def _open_folder(path: Path, split: str) -> Store:
    if (path / "dataset_dict.json").is_file():
        splits = _json(path / "dataset_dict.json").get("splits", [])
        if split not in splits:
            raise ValueError(f"{path}: has no split {split!r}; it has: {', '.join(splits) or 'none'}")
        return _open_folder(path / split, split)
    if (path / "state.json").is_file():
        files = [path / entry["filename"] for entry in _json(path / "state.json").get("_data_files", [])]
    else:
        files = _files_of(path, split)
    if missing := [file for file in files if not file.is_file()]:
        raise ValueError(f"{missing[0]}: is missing, though {path / 'state.json'} names it")
    if not files:
        raise ValueError(f"{path}: a folder without data files; taken are {', '.join(SUFFIXES)}")
    stores = [open_file(file) for file in files]
    return stores[0] if len(stores) == 1 else JoinedStore(path, stores)


def _files_of(path: Path, split: str) -> list[Path]:
    """The data files in a folder, in the order of their names; where some are named after a split (train-00000-of-00002), its."""
    files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES) and not file.name.startswith("."))
    named = [file for file in files if re.match(rf"{re.escape(split)}[-_.]", file.name)]
    if not named and split != "train":
        raise ValueError(f"{path}: no file of it is named after the split {split!r}")
    return named or files


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as problem:
        raise ValueError(f"{path}: cannot be read: {_line(problem)}") from problem
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is not what datasets.save_to_disk writes")
    return content


def _line(problem: Exception) -> str:
    return " ".join(str(problem).split())[:200]
