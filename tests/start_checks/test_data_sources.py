"""The data task's rows, looked at before a run: what cannot be used is named by file and line, what may surprise is said."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_entropic.config.loading import load_config
from megatron_entropic.start_checks import data_task
from megatron_entropic.start_checks.data import check_data

LOCAL = ("rollout.engine=local", "parallel.tensor=1", "reward.workers=1", "task.name=data")


def file(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return f"data.train={{path: '{path}', verifier: exact}}"


def remarks(*overrides: str) -> list[str]:
    return check_data(load_config("quickstart", [*LOCAL, *overrides]))


def test_sources_are_said_with_what_becomes_of_them(tmp_path: Path) -> None:
    source = file(tmp_path / "a.jsonl", *({"question": f"{n}=", "answer": n} for n in range(50)))
    assert remarks(source) == [f"{tmp_path}/a.jsonl: 50 rows, from the fields question and answer"]
    first, second = remarks(source, "data.held_out=0.5")
    assert "a.jsonl: 50 rows, from the fields question and answer; " in first
    assert second == "data.held_out=0.5: about that fraction of the prompts, by their hash, is never trained on"


def test_rows_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    rows = [{"question": "1=", "answer": "1"}, {"question": "", "answer": "1"}, "", "no json", *[{"question": "x"}] * 9]
    with pytest.raises(
        ValueError,
        match=r"a\.jsonl: 11 of the 12 rows looked at cannot be used: line 2: field question is empty; line 4: not valid.*; and 6 more",
    ):
        remarks(file(tmp_path / "a.jsonl", *rows))


def test_known_answers_go_back_to_their_verifier(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    path = tmp_path / "m.jsonl"
    file(path, {"question": "a", "answer": "\\frac{1}{2}"}, {"question": "b", "answer": "x^2"}, {"question": "c", "answer": 4})
    (head, hint) = remarks(f"data.train={path}")
    assert "m.jsonl: no prompt asks for the answer in \\boxed{...}, where the verifier math reads it" in hint
    assert remarks(f"data.train={{path: '{path}', prompt_template: '{{prompt}} Use \\boxed{{}}.'}}") == [head]
    assert remarks(f"data.train={{path: '{path}', prompt_template: '{{prompt}} End with \"#### answer\".'}}") == [head]
    (tmp_path / "strict.py").write_text(
        "class Never:\n"
        "    reads = ()\n"
        "    def __init__(self, options): pass\n"
        "    def known_answer(self, text, row): return text\n"
        "    def response_of(self, answer): return answer\n"
        "    def score(self, answer, row, response): return 0.5\n"
    )
    with pytest.raises(
        ValueError,
        match=r"2 known answers are wrong by their own measure: .*m\.jsonl, line 1: the answer '.*' scores 0\.5 when it is given back",
    ):
        remarks(f"data.train={{path: '{path}', verifier: '{tmp_path}/strict.py:Never'}}")


def test_prompts_that_are_too_long(tmp_path: Path) -> None:
    source = file(tmp_path / "a.jsonl", {"question": "1=", "answer": 1}, {"question": "1" * 600, "answer": 1})
    with pytest.raises(
        ValueError, match=r"a\.jsonl: of 2 prompts looked at, 1 with more than 496 tokens are too long \(line 2\); lower"
    ):
        remarks(source)
    assert "1 with more than 496 tokens are cut in their middle (line 2)" in remarks(source, "task.overlong_prompts=truncate")[1]
    assert remarks(source, "task.overlong_prompts=drop")[0].endswith("; 1 of them is used")


def test_of_very_many_rows_evenly_spread_ones_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_task, "MOST_ROWS", 10)
    rows: list[Any] = [{"question": f"{n}=", "answer": n} for n in range(100)]
    rows[5] = "no json"
    remarks(file(tmp_path / "a.jsonl", *rows))
    rows[50] = "no json"
    with pytest.raises(ValueError, match="1 of the 10 rows looked at cannot be used: line 51"):
        remarks(file(tmp_path / "a.jsonl", *rows))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"data\.train: needed: a list of sources, such as data\.train="),
        (["data.train=x.jsonl", "task.options.path=x"], r"task\.options\.path: task\.name=data has no options"),
        (["data.train={path: nothere.jsonl}"], r"nothere\.jsonl: no such file"),
        (["data.train={path: HERE, verifier: exat}"], r"data\.train\[0\]: verifier 'exat' is none of .*; did you mean 'exact'"),
        (
            ["data.train={path: HERE, prompt_field: q}"],
            r"here\.jsonl: 1 of the 1 rows looked at cannot be used: line 1: field q is missing",
        ),
    ],
)
def test_settings_of_sources_that_cannot_be(tmp_path: Path, overrides: list[str], message: str) -> None:
    file(tmp_path / "here.jsonl", {"question": "1=", "answer": 1})
    with pytest.raises(ValueError, match=message):
        remarks(*(override.replace("HERE", str(tmp_path / "here.jsonl")) for override in overrides))
