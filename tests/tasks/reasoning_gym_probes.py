"""Fires hostile and constant answers at every admitted dataset of Reasoning Gym, for test_reasoning_gym_pays.py.

Writes one JSON object: by dataset the prompts of its first problems, what each answer scored for each problem, and what the known
answers scored; the prompts alone with the argument --prompts.
"""

import json
import sys
from typing import Any

from reasoning_gym.factory import DATASETS

from megatron_entropic.tasks.reasoning_gym import EXECUTES_ANSWERS, NOT_REPEATABLE, make_reasoning_gym
from megatron_entropic.tasks.reasoning_gym_verifiers import OWN_VERIFIERS

PROBLEMS = 8
ANSWERS = [
    *["", " ", "\n", "0", "1", "-1", "2", "10", "42", "1.5", "1/0", "1e400", "-1e999999999", "9**9**9**9", "0x10", "1_000"],
    *["1,000", "½", "nan", "NaN", "nanj", "nan+nanj", "inf", "-inf", "Infinity", "infj", "1j", "None", "null", "True", "false"],
    *["yes", "No", "impossible", "[]", "{}", "()", "[[]]", "[null]", "[[1,2],[3,4]]", '{"a":1}', "(1,2)", "A", "the", "x=1"],
    *["A:B -> C", "R U R' U2 X!", "*", "?", "1 1 1\n1 1 1", "right up down", "1 " * 400, "[" * 5000, "9" * 5000, "\x00", "\ud800"],
    *["I don't know", "0 1 2 3 4 5 6 7 8 9"],
]


def main() -> None:
    """Writes what every dataset pays."""
    names = sorted(set(DATASETS) - (EXECUTES_ANSWERS - OWN_VERIFIERS.keys()) - NOT_REPEATABLE)
    found: dict[str, dict[str, list[Any]]] = {}
    for name in names:
        task = make_reasoning_gym({"dataset": name}, 0)
        problems = [task.problem(index) for index in range(PROBLEMS)]
        found[name] = {"prompts": [problem.prompt for problem in problems]}
        if sys.argv[1:] == ["--prompts"]:
            continue
        known = [task._entry(index).get("answer") for index in range(PROBLEMS)]
        found[name] |= {
            "scores": [[task.score(problem, answer) for problem in problems] for answer in ANSWERS],
            "known": [None if answer is None else str(answer) for answer in known],
            "known_scores": [task.score(problem, str(answer)) for problem, answer in zip(problems, known, strict=True)],
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
