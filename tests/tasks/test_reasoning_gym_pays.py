"""No admitted dataset of Reasoning Gym pays for anything, and all make the same problems in every process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.reasoning_gym_probes import ANSWERS, PROBLEMS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def runs() -> list[dict[str, Any]]:
    """Findings of two processes with unlike hash seeds, side by side; the second only made the problems."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.tasks.reasoning_gym_probes"]
    processes = [
        subprocess.Popen([*command, *more], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE)
        for seed, more in (("1", ()), ("2", ("--prompts",)))
    ]
    outputs = [process.communicate(timeout=500)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return [json.loads(output[output.index(b"{") :]) for output in outputs]


@pytest.mark.slow
def test_no_answer_is_right_whatever_was_asked(runs: list[dict[str, Any]]) -> None:
    """An answer paid on every problem is one that the dataset knows for every problem, or the verifier pays for anything."""
    assert len(ANSWERS) >= 50
    pays = [
        (name, answer[:20], scores)
        for name, found in runs[0].items()
        for answer, scores in zip(ANSWERS, found["scores"], strict=True)
        if sum(score >= 0.99 for score in scores) >= PROBLEMS - 1 and len({known for known in found["known"] if known != answer}) > 1
    ]
    assert not pays


@pytest.mark.slow
def test_known_answers_are_right_where_there_are_any(runs: list[dict[str, Any]]) -> None:
    without = {name for name, found in runs[0].items() if None in found["known"]}
    assert without <= {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
    for name, found in runs[0].items():
        assert name in without or found["known_scores"] == [1.0] * PROBLEMS, name


@pytest.mark.slow
def test_problems_do_not_depend_on_the_process(runs: list[dict[str, Any]]) -> None:
    first, second = runs
    assert {name for name in first if first[name]["prompts"] != second[name]["prompts"]} == set()
