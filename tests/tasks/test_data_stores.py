"""Files and folders that others wrote, opened without reading their rows; damaged and foreign ones are named for what they are."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_entropic.config import DataSource
from megatron_entropic.tasks.data import open_data
from megatron_entropic.tasks.data.opening import open_store

ROWS: list[dict[str, Any]] = [{"question": f"{n}+1=", "answer": str(n + 1), "extra": {"level": n}} for n in range(300)]


def _jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _arrow_stream(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, 70)


def _arrow_file(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, 70)


def _shards(path: Path) -> None:
    path.mkdir()
    for number in range(3):
        part = pa.Table.from_pylist(ROWS[number * 100 : (number + 1) * 100])
        pq.write_table(part, path / f"train-{number:05d}-of-00003.parquet", row_group_size=30)
    pq.write_table(pa.Table.from_pylist(ROWS[:1]), path / "test-00000-of-00001.parquet")
    (path / "README.md").write_text("# of the data")


def _mixed(path: Path) -> None:
    path.mkdir()
    (path / "a.jsonl").write_bytes(_jsonl(ROWS[:150]))
    (path / "b.jsonl.gz").write_bytes(gzip.compress(_jsonl(ROWS[150:]), mtime=0))


def _rows_but_one() -> datasets.Dataset:
    """With indices into a table that has one row more."""
    return datasets.Dataset.from_list([{**ROWS[0], "question": ""}, *ROWS]).filter(bool, input_columns="question")


WRITERS: dict[str, Callable[[Path], Any]] = {
    "rows #1.jsonl": lambda path: path.write_bytes(_jsonl(ROWS)),
    "windows.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + _jsonl(ROWS).replace(b"\n", b"\r\n\r\n   \r\n").rstrip()),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(_jsonl(ROWS), mtime=0)),
    "rows.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=70),
    "stream.arrow": _arrow_stream,
    "file.arrow": _arrow_file,
    "saved": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(path, num_shards=3),
    "filtered": lambda path: _rows_but_one().save_to_disk(path),
    "splits": lambda path: datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:2])}
    ).save_to_disk(path),
    "shards": _shards,
    "mixed": _mixed,
}


def test_categories_of_pandas_are_texts(tmp_path: Path) -> None:
    """Dictionaries that differ from row group to row group."""
    tables = [pa.table({"question": pa.array([f"{part}{n}" for n in range(50)]).dictionary_encode()}) for part in "ab"]
    with pq.ParquetWriter(tmp_path / "x.parquet", tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    store = open_store(str(tmp_path / "x.parquet"))
    assert [store.row(index)["question"] for index in (0, 49, 50, 99)] == ["a0", "a49", "b0", "b49"]


@pytest.mark.parametrize("name", WRITERS)
def test_every_row_is_read_in_order(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    store = open_store(str(tmp_path / name))
    assert len(store) == len(ROWS)
    assert [store.row(index) for index in range(len(store))] == ROWS
    assert [row["extra"] for row in store.scan(["extra"])] == [row["extra"] for row in ROWS]
    assert store.names() == ["question", "answer", "extra"]
    task = open_data([DataSource(path=str(tmp_path / name), verifier="exact")], seed=None)
    assert [task.problem(index).prompt for index in range(len(task))] == [row["question"] for row in ROWS]


def test_a_split_is_taken_by_its_name(tmp_path: Path) -> None:
    for name, count in (("splits", 2), ("shards", 1)):
        WRITERS[name](tmp_path / name)
        assert len(open_store(str(tmp_path / name), split="test")) == count
    with pytest.raises(ValueError, match=r"splits: has no split 'dev'; it has: train, test"):
        open_store(str(tmp_path / "splits"), split="dev")
    with pytest.raises(ValueError, match="shards: no file of it is named after the split 'dev'"):
        open_store(str(tmp_path / "shards"), split="dev")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"", "is empty"),
        ("blank.jsonl", b"\n  \n\n", "holds no rows"),
        ("array.json", b'[{"question": 1}]', "a JSON array; one object a line is needed"),
        ("a.jsonl", b"\xff\xfe{\0", "UTF-16"),
        ("a.zip", b"PK\x03\x04", "a zip archive"),
        ("cut.jsonl.gz", gzip.compress(_jsonl(ROWS), mtime=0)[:-9], "a damaged gzip file"),
        ("cut.parquet", b"PAR1 and nothing else", "a damaged Parquet file"),
        ("cut.arrow", b"ARROW1\0\0 and nothing else", "a damaged Arrow file"),
    ],
)
def test_what_is_no_data_file_is_named_for_what_it_is(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        open_store(str(tmp_path / name))


def test_paths_that_hold_nothing_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"nothere\.jsonl: no such file or folder"):
        open_store(str(tmp_path / "nothere.jsonl"))
    with pytest.raises(ValueError, match="a folder without data files; taken are "):
        open_store(str(tmp_path))
    pq.write_table(pa.Table.from_pylist([]), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match=r"none\.parquet: holds no rows"):
        open_store(str(tmp_path / "none.parquet"))
    WRITERS["saved"](tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).unlink()
    with pytest.raises(ValueError, match=r"\.arrow: is missing, though .*state\.json names it"):
        open_store(str(tmp_path / "saved"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        ValueError, match=r"org/some-data: is no file or folder here, and cannot be loaded .* HF_HUB_OFFLINE=1 keeps it offline"
    ):
        open_store("org/some-data")


def test_a_bad_row_is_found_when_it_is_read_and_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"question": "1", "answer": "1"}\n\n{"question": "2", "answer": NaN}\n[]\n{"a": 1, "a": 2}\n')
    task = open_data([DataSource(path=str(tmp_path / "x.jsonl"), verifier="exact")], seed=None)
    for index, message in (
        (1, "line 3: NaN is no JSON value"),
        (2, "line 4: not a JSON object"),
        (3, "line 5: field a is there twice"),
    ):
        with pytest.raises(ValueError, match=rf"x\.jsonl, {message}"):
            task.problem(index)
