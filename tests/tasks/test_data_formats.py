"""Rows in the shapes in which verl, slime, NeMo-RL and the data sets that people train on come."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_entropic.config import DataSource
from megatron_entropic.tasks.data import open_data
from megatron_entropic.tasks.task import Problem

QUESTION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many altogether?"
WORKED = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = <<48+24=72>>72 clips altogether.\n#### 72"
USER = [{"role": "user", "content": QUESTION}]
ROWS: dict[str, dict[str, Any]] = {
    "GSM8K": {"question": QUESTION, "answer": WORKED},
    "MATH": {"problem": QUESTION, "level": "Level 1", "type": "Algebra", "solution": "It is $24+48=\\boxed{72}$."},
    "MATH-500": {
        "problem": QUESTION,
        "solution": "So $\\boxed{72}$.",
        "answer": "72",
        "subject": "Algebra",
        "level": 2,
        "unique_id": "test/algebra/1.json",
    },
    "AIME": {"id": 60, "problem": QUESTION, "solution": "Long.\n\nSo 072.", "answer": "72", "url": "https://x", "year": "2024"},
    "OlympiadBench": {"id": 1606, "question": QUESTION, "solution": ["..."], "final_answer": ["72"], "is_multiple_answer": False},
    "verl": {
        "data_source": "openai/gsm8k",
        "prompt": USER,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "72"},
        "extra_info": {"split": "train", "index": 0, "answer": WORKED, "question": QUESTION},
    },
    "verl, a list": {"data_source": "lighteval/MATH", "prompt": USER, "reward_model": {"style": "rule", "ground_truth": ["72"]}},
    "DAPO-Math-17k": {
        "data_source": "math_dapo",
        "prompt": USER,
        "ability": "MATH",
        "reward_model": {"ground_truth": "72", "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": "9a9b6eb4-a1cb-49d1-8c1e-62eaf2f74079"},
    },
    "slime": {"prompt": USER, "label": "72", "metadata": {"rm_type": "math"}},
    "slime, text": {"text": QUESTION, "label": "72"},
    "NeMo-RL": {"problem": QUESTION, "expected_answer": "72", "generated_solution": "..."},
    "NeMo-RL, input": {"input": QUESTION, "output": "72"},
    "NeMo-RL, messages": {"messages": [*USER, {"role": "assistant", "content": "72"}], "task_name": "math"},
    "NeMo Gym": {"responses_create_params": {"input": USER}, "expected_answer": "72"},
    "parts of content": {"messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}], "answer": 72},
}


def problem(folder: Path, row: dict[str, Any], **settings: Any) -> Problem:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row))
    return open_data([DataSource(path=str(path), **settings)], seed=None).problem(0)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_recognised(name: str, tmp_path: Path) -> None:
    found = problem(tmp_path, ROWS[name])
    assert (found.prompt, found.data["answer"], found.messages) == (QUESTION, "72", ())
    assert found.data["source"] == str(tmp_path / "rows.jsonl")
    assert found.data["row"] == 1
    json.dumps(dict(found.data))


def test_settings_win_over_what_is_recognised(tmp_path: Path) -> None:
    row = {"question": "not this", "q": {"text": "this"}, "answer": "no", "a": ["yes"]}
    found = problem(
        tmp_path, row, prompt_field="q.text", answer_field="a", verifier="exact", prompt_template="Say: {prompt}!", system="Be brief."
    )
    assert found.prompt == "Say: this!"
    assert [dict(message) for message in found.messages] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Say: this!"},
    ]
    assert (found.data["answer"], found.data["verifier"]) == ("yes", {"name": "exact", "options": {}})


def test_a_chat_of_several_turns_is_asked_as_it_is(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "s"},
        *USER,
        {"role": "assistant", "content": "What is half?"},
        {"role": "user", "content": "24"},
    ]
    found = problem(tmp_path, {"prompt": chat, "label": "72"}, template_options={"enable_thinking": False})
    assert [dict(message) for message in found.messages] == chat
    assert found.prompt == f"user: {QUESTION}\nassistant: What is half?\nuser: 24"
    assert found.template_options == {"enable_thinking": False}
    assert dict(problem(tmp_path, {"prompt": chat, "label": "72"}, system="t").messages[0]) == {"role": "system", "content": "t"}


def test_a_row_may_name_its_verifier_but_no_code(tmp_path: Path) -> None:
    row = {"question": "1+1=", "answer": "2", "verifier": "exact"}
    assert problem(tmp_path, row).data["verifier"] == {"name": "exact", "options": {}}
    assert problem(tmp_path, row, verifier="math").data["verifier"]["name"] == "math"
    for name in ("os:system", "rewards/x.py:f", "nothing", 3, {"name": "exact"}):
        with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: field verifier: a row cannot name the verifier"):
            problem(tmp_path, {**row, "verifier": name})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text_of_it": "x", "answer": 1},
            "no field for the prompt; found: text_of_it, answer; known: prompt, .*; name yours by prompt_field",
        ),
        ({"question": "x", "a": 1}, "no field for the answer; found: question, a; .*name yours by answer_field"),
        ({"question": "x", "answer": ["1", "2"]}, "field answer is a list of 2; one answer is needed"),
        ({"question": "x", "answer": "so it is\nlong"}, "no final answer"),
        ({"question": 3, "answer": 1}, "field question must be text, not int"),
        ({"prompt": [], "answer": 1}, r"field prompt is a chat of \[\]; it must end in a message of the user"),
        ({"prompt": [{"role": "boss", "content": "x"}], "answer": 1}, r"field prompt\[0\] is no message of system, developer, user"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": 1}, "holds a part that is no text"),
        ({"messages": USER}, "does not end in an answer of the assistant"),
        ({"question": "a\ud800", "answer": 1}, "half of a character"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named_by_line_and_field(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 1: .*{message}"):
        problem(tmp_path, row)
