"""Rows of a data file before their verifiers, through the data task: known answers, fields and prompts arrive where they are needed."""

import json
from pathlib import Path

import pytest

from megatron_entropic.config.data import DataSource, VerifierPart
from megatron_entropic.tasks.data import open_data
from megatron_entropic.tasks.verification import judge
from tests.tasks.verifiers.servers import said, serving

ROWS = [
    {"prompt": "Add.", "answer": json.dumps({"inputs": ["1 2"], "outputs": ["3"]}), "verifier": "code"},
    {"prompt": "About pi?", "answer": "3.14", "verifier": "number", "verifier_options": {"absolute": 0.01}},
    {"prompt": "A or B?", "answer": "(B) two", "verifier": "choice"},
    {"prompt": "2 + 2?", "answer": "4", "verifier": "reasoning_gym", "metadata": {"source_dataset": "chain_sum"}},
    {"prompt": "6 * 7?", "answer": "#### 42"},
]
RIGHT = ["```python\nprint(sum(map(int, input().split())))\n```", "3.145", "The answer is B.", "<answer>4</answer>", r"\boxed{42}"]


def file_of(folder: Path, rows: list[dict[str, object]]) -> str:
    path = folder / "my rows #1.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_each_row_has_its_own_verifier(tmp_path: Path) -> None:
    task = open_data([DataSource(path=file_of(tmp_path, ROWS))], seed=None)
    for index, right in enumerate(RIGHT):
        scores = [task.score(task.problem(index), response) for response in RIGHT]
        assert [number for number, score in enumerate(scores) if score == 1.0] == [index], right


def test_a_source_has_a_sum_with_a_judge_that_sees_the_prompt(tmp_path: Path) -> None:
    with serving(lambda body, number: said("Score: 5")) as server:
        options = {"url": f"{server.url}/v1", "model": "m", "cache": "none"}
        parts = (VerifierPart(name="exact", weight=1.0), VerifierPart(name="judge", weight=3.0, options=options))
        file = file_of(tmp_path, [{"asked": "Why?", "answer": "so"}])
        task = open_data([DataSource(path=file, prompt_field="asked", verifier=parts)], seed=None)
        problem = task.problem(0)
        verdict = judge(task, problem, "so", passing=())
    assert task.waits(problem)
    assert (verdict.score, verdict.parts) == (0.625, {"exact": 1.0, "judge": 0.5})
    assert "Question:\nWhy?\n" in server.bodies[0]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"verifier": "judge", "verifier_options": {"url": "http://h/v1"}}, "line 1: field verifier: a row cannot name .*'judge'"),
        ({"verifier": "code", "verifier_options": {"allow_unsandboxed": True}}, "cannot set the option 'allow_unsandboxed' of code"),
    ],
)  # fmt: skip
def test_a_row_cannot_ask_for_more_than_it_may(tmp_path: Path, row: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_data([DataSource(path=file_of(tmp_path, [{"prompt": "p", "answer": "a", **row}]))], seed=None).problem(0)
