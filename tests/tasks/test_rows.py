"""Data files as people bring them: what is read, and what is refused by file, line and field."""

import contextlib
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_entropic.tasks.math import known_answer
from megatron_entropic.tasks.rows import DataFile, read_rows


def line(**fields: Any) -> bytes:
    return (json.dumps(fields, ensure_ascii=False) + "\n").encode()


GOOD = line(prompt="1+1=", answer="2")


def read(path: Path, content: bytes, *, prompt_field: str = "", answer_field: str = "") -> DataFile:
    path.write_bytes(content)
    return read_rows(path, prompt_field=prompt_field, answer_field=answer_field, known_answer=known_answer)


@pytest.mark.parametrize(
    ("content", "answers"),
    [
        (b"\xef\xbb\xbf" + GOOD, ["2"]),
        (GOOD.replace(b"\n", b"\r\n") * 2, ["2", "2"]),
        (b"\n" + GOOD + b"  \n" + GOOD.rstrip(), ["2", "2"]),
        (gzip.compress(GOOD, mtime=0), ["2"]),
        (line(prompt="x", answer=2), ["2"]),
        (b'{"prompt": "x", "answer": 2.50}', ["2.50"]),
        (b'{"prompt": "x", "answer": 1e-7}', ["0.0000001"]),
        (line(prompt="x", answer=["7"]), ["7"]),
        (line(prompt="x", answer=" 7 "), ["7"]),
        (line(problem="x", solution="So it is $\\boxed{\\frac{1}{2}}$."), ["\\frac{1}{2}"]),
        (line(question="x", answer="2 + 1,232 = <<2+1232=1234>>1,234.\n#### 1,234"), ["1234"]),
        (line(problem="x", solution="long\ntext", answer="7"), ["7"]),
        (line(problem="x", expected_answer="7"), ["7"]),
        (line(prompt="x", label="7"), ["7"]),
        (line(data_source="m", prompt=[{"role": "user", "content": "x"}], reward_model={"ground_truth": "7", "style": "rule"}), ["7"]),
        (line(prompt="{prompt} {question}\u2028", answer="(1, 2)"), ["(1, 2)"]),
    ],
)
def test_what_data_sets_look_like_is_read(tmp_path: Path, content: bytes, answers: list[str]) -> None:
    assert [row.answer for row in read(tmp_path / "x.jsonl", content).rows] == answers


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no problems"),
        (b"\n\n", "holds no problems"),
        (GOOD + b"not json\n", "1 of 2 rows cannot be used: line 2: not valid JSON: Expecting value at column 1"),
        (GOOD + b"\n" + line(prompt="a"), "line 3: field answer is missing or null; found: prompt"),
        (
            line(text="a", gold="1"),
            "line 1: no field for the prompt; found: text, gold; known: prompt, question, problem; name yours: ",
        ),
        (line(prompt="x", answer=None), "line 1: field answer is missing or null"),
        (line(prompt="x", answer=["1", "2"]), "line 1: field answer is a list of 2"),
        (line(prompt="x", answer=True), "line 1: field answer must be text, not bool"),
        (line(prompt="x", answer={"a": 1}), "line 1: field answer must be text, not dict"),
        (b'{"prompt": "x", "answer": NaN}', "line 1: NaN is no JSON value"),
        (b'{"prompt": "x", "answer": 1e999999999}', "line 1: field answer is 1E+999999999, which is no number that can be written out"),
        (b'{"prompt": "x", "answer": %s}' % (b"1" * 5000), "line 1: not valid JSON: Exceeds the limit"),
        (b'{"prompt": ' + b"[" * 200_000, "line 1: not valid JSON"),
        (b'{"prompt": "x", "answer": "2", "answer": "3"}', "line 1: field answer is there twice"),
        (b'{"prompt": "a \\ud800 b", "answer": "1"}', "line 1: field prompt holds half of a character"),
        (b'{"prompt": "a \\u0000 b", "answer": "1"}', "line 1: field prompt holds a NUL character"),
        (line(prompt=" ", answer="1"), "line 1: field prompt is empty"),
        (line(prompt="x", answer="so\n####  "), "line 1: field answer is no final answer"),
        (line(problem="x", solution="It follows\nthat it is 7."), "line 1: field solution is no final answer and holds none"),
        (
            line(prompt=[{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], answer="1"),
            "is a chat of ['system', 'user']",
        ),
        (line(prompt=["x"], answer="1"), "is a chat of [None]"),
        (b"[1]\n", "a JSON array; one object a line is needed"),
        (b'{\n "prompt": "x"\n}', "one JSON object over several lines"),
        (GOOD + b"[1]\n", "line 2: not a JSON object"),
        (line(prompt="café", answer="1").decode().encode("latin-1"), "line 1: not UTF-8 (byte 0xe9 at column 16)"),
        (GOOD.decode().encode("utf-16"), "UTF-16; convert it: iconv"),
        (GOOD.decode().encode("utf-16-le"), "UTF-16; convert it: iconv"),
        (b"PAR1\x15\x04\x15", "a Parquet file, which task.name=data reads"),
        (gzip.compress(GOOD * 999, mtime=0)[:-20], "a damaged gzip file"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    with pytest.raises(ValueError, match=r"x\.jsonl: ") as raised:
        read(path, content)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_all_bad_rows_are_counted_and_the_first_shown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"8 of 9 rows cannot be used: line 2: .*line 6: .*; and 3 more"):
        read(tmp_path / "x.jsonl", GOOD + b"?\n" * 8)


def test_folders_and_missing_files_are_named(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "a folder; name one file of it"), (tmp_path / "no", "no such file")):
        with pytest.raises(ValueError, match=message):
            read_rows(path, prompt_field="", answer_field="", known_answer=known_answer)


def test_fields_can_be_named_and_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    read(
        tmp_path / "x.jsonl",
        line(prompt="no", asked="yes", answer="1", meta={"gold": 7}),
        prompt_field="asked",
        answer_field="meta.gold",
    )
    file = read_rows(Path("~/x.jsonl"), prompt_field="asked", answer_field="meta.gold", known_answer=known_answer)
    assert [(row.prompt, row.answer) for row in file.rows] == [("yes", "7")]


def test_repeated_and_contradicting_rows_are_counted(tmp_path: Path) -> None:
    file = read(tmp_path / "x.jsonl", GOOD * 3 + line(prompt="1+1=", answer="3"))
    assert (len(file.rows), file.repeated, file.contradicting) == (4, 2, 1)
    assert str(file).endswith(
        "4 problems, from the fields prompt and answer; 2 rows repeating an earlier one; 1 row with the prompt of an earlier one "
        "and another answer"
    )


@given(st.binary(max_size=200))
def test_no_bytes_do_worse_than_a_value_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    with contextlib.suppress(ValueError):
        assert read(path, content).rows
