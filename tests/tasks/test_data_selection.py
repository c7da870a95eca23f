"""Which rows are asked: filters, one of each prompt, and a split that no prompt is on both sides of."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_entropic.config import DataConfig, DataSource
from megatron_entropic.tasks.data import open_data
from megatron_entropic.tasks.data.selection import prompt_key


def file(path: Path, rows: list[dict[str, Any]]) -> DataSource:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSource(path=str(path), verifier="exact")


def prompts(sources: list[DataSource], **data: Any) -> list[str]:
    task = open_data(sources, DataConfig(**data), seed=None)
    return [task.problem(index).prompt for index in range(len(task))]


@pytest.fixture
def two(tmp_path: Path) -> list[DataSource]:
    """Numbers 0 to 299 as JSON Lines, and 200 to 499, written otherwise, as chats in Parquet."""
    first = [{"question": f"What is {n}?", "answer": n, "level": n % 5} for n in range(300)]
    second = [{"prompt": [{"role": "user", "content": f"what  is\n{n}? "}], "label": str(n), "level": n % 5} for n in range(200, 500)]
    return [file(tmp_path / "a.jsonl", first), file(tmp_path / "b.parquet", second)]


def test_no_prompt_is_trained_on_and_held_out_across_sources_and_orders(two: list[DataSource]) -> None:
    train, held = prompts(two, held_out=0.3), prompts(two, held_out=0.3, part="held_out")
    assert len(train) + len(held) == 600
    assert 0.2 < len(held) / 600 < 0.4
    keys = {prompt_key(prompt) for prompt in train}
    assert not keys & {prompt_key(prompt) for prompt in held}
    assert sorted(prompts(two[::-1], held_out=0.3)) == sorted(train)
    assert {prompt_key(prompt) for prompt in prompts(two, held_out=0.1, part="held_out")} < {prompt_key(prompt) for prompt in held}


def test_a_source_may_say_its_part_itself(two: list[DataSource]) -> None:
    whole = replace(two[0], part="all")
    assert len(prompts([whole, two[1]], held_out=0.5)) > 300 + 100
    with pytest.raises(ValueError, match=r"data\.train\[0\]\.part=held_out needs data\.held_out"):
        prompts([replace(whole, part="held_out")])


def test_of_the_same_prompt_the_first_is_asked(two: list[DataSource]) -> None:
    found = prompts(two, deduplicate=True)
    assert len(found) == 500
    assert found[:300] == [f"What is {n}?" for n in range(300)]
    assert len(prompts([*two, two[0]], deduplicate=False)) == 900
    with pytest.raises(ValueError, match=r"a\.jsonl: none of its 300 rows is left by filters, .* \(data\.train\[2\]\)"):
        prompts([*two, two[0]], deduplicate=True)


def test_filters_and_limits(two: list[DataSource]) -> None:
    assert len(prompts([replace(source, filter="level >= 3") for source in two])) == 240
    assert prompts([replace(two[0], filter="level == 1 and answer > 10", limit=2)]) == ["What is 11?", "What is 16?"]
    assert prompts([replace(two[1], filter="len(prompt) == 14 and answer.endswith('9')", limit=1)]) == ["what  is\n209? "]
    assert len(prompts([replace(two[0], filter="level == 0")], deduplicate=True, held_out=0.5)) in range(15, 46)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("levle > 3", r"data\.train\[0\]\.filter='levle > 3': .*a\.jsonl has no field levle; it has: answer, level, prompt, question"),
        ("level > 'x'", r"data\.train\[0\]\.filter=\"level > 'x'\": .*a\.jsonl, line 1"),
        ("level >", r"data\.train\[0\]\.filter='level >': is no expression"),
        ("level > 9", r"a\.jsonl: none of its 300 rows is left by filters, .* \(data\.train\[0\]\)"),
    ],
)
def test_a_filter_that_cannot_be_is_named(two: list[DataSource], expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompts([replace(two[0], filter=expression)])


def test_a_filter_leaves_out_rows_without_a_prompt_and_names_those_it_cannot_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "1=", "answer": 1}, {"prompt": None, "answer": 1}, {"prompt": "2=", "answer": None}]
    source = file(tmp_path / "a.jsonl", rows)
    assert prompts([replace(source, filter="prompt is not None and answer is not None")]) == ["1="]
    source = file(tmp_path / "b.jsonl", [{"prompt": "1=", "answer": 1}, {"prompt": [7], "answer": 1}])
    with pytest.raises(ValueError, match=r"b\.jsonl, line 2: field prompt\[0\] is no message"):
        prompts([replace(source, filter="len(prompt) < 9")])


def test_a_bad_row_is_named_where_rows_are_looked_at(tmp_path: Path) -> None:
    source = file(tmp_path / "x.jsonl", [{"question": "1", "answer": 1}, {"question": None, "answer": 1}])
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2: field question is missing or null"):
        prompts([source], deduplicate=True)
    with (tmp_path / "x.jsonl").open("a") as out:
        out.write("{not json}\n")
    with pytest.raises(ValueError, match=r"x\.jsonl, line 3: not valid JSON"):
        prompts([DataSource(path=source.path, verifier="exact", filter="answer == 1")])
