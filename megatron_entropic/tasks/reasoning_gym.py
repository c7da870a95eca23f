"""Reasoning Gym: about a hundred procedural tasks with verifiers (the package reasoning-gym, imported when first used).

`task.options`: `dataset` ("chain_sum"), `prompt_template` ("{question}\\n"; {question} is replaced, other braces are text), and
the dataset's own parameters by their names there (`min_terms=3`). `seed` and `size` are the run's, not options.
The answer is what stands in the last <answer>...</answer> of a response, or the whole response when there is none, stripped.
"""

import dataclasses
import math
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from hashlib import sha256
from typing import Any

from megatron_entropic.tasks.options import did_you_mean, refuse_unknown, text
from megatron_entropic.tasks.reasoning_gym_verifiers import OWN_VERIFIERS, is_not_a_number
from megatron_entropic.tasks.task import Problem

_CHUNK = 1024
"""Problems from one seed of a dataset; some datasets prepare all of them when they are made."""

_LONGEST_ANSWER = 10_000
"""Characters; a longer answer scores 0: verifiers may take quadratic time."""

EXECUTES_ANSWERS = frozenset(
    {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}  # eval(answer)
    | {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}  # sympy.parse_expr
    | {"coin_flip"}  # Fraction(answer): "1e999999999" takes forever
    | {"composite"}  # may hold any of these
)
"""Datasets whose verifier executes the answer as Python, or can be held up by a short one: refused without one of ours."""

NOT_REPEATABLE = frozenset({"codeio", "isomorphic_strings", "list_functions", "ransom_note"})
"""Datasets whose problems depend on more than their seed (Python's hash seed, a global generator): refused, for a resumed run and
the verifier's process would have others."""

_REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)


class ReasoningGym:
    """The task (task.py says what a task promises) over one dataset of the package.

    Problem i comes from a dataset of 1024 problems seeded by (seed, i // 1024): the stream never ends, and the streams of
    neighbouring seeds share nothing (the package itself seeds problem i with seed + i).
    """

    def __init__(self, dataset: str, parameters: Mapping[str, Any], prompt_template: str, seed: int) -> None:
        self._dataset = dataset
        self._parameters = dict(parameters)
        self._template = prompt_template
        self._seed = seed
        self._chunk = lru_cache(maxsize=2)(self._make_chunk)
        self._entry = lru_cache(maxsize=_CHUNK)(self._make_entry)  # some take a second, and every sample is scored against it
        self._chunk(0)  # bad parameters end here, not in the middle of a run

    def problem(self, index: int) -> Problem:
        """Problem `index` of the stream. `data` names it (dataset, index); the verifier makes the same entry again from that."""
        if index < 0:
            raise ValueError(f"problem index {index}: must be >= 0")
        prompt = self._template.replace("{question}", self._entry(index)["question"])
        return Problem(prompt=prompt, data={"dataset": self._dataset, "index": index})

    def score(self, problem: Problem, response: str) -> float:
        """The score of the answer in `response`, by the dataset's verifier or ours (OWN_VERIFIERS), clipped to [0, 1].

        0.0 for text the verifier chokes on. Raises ValueError when this process makes another problem of the index than
        `problem`: some datasets depend on more than their seed.
        """
        answer = extract_answer(response)
        if len(answer) > _LONGEST_ANSWER:
            return 0.0  # before the problem is made, which may take a second
        index = int(problem.data["index"])
        if self.problem(index).prompt != problem.prompt:
            raise ValueError(f"reasoning_gym/{self._dataset}: problem {index} is another one in the verifier's process")
        return entry_score(self._dataset, self._chunk(index // _CHUNK), answer, self._entry(index))

    def _make_entry(self, index: int) -> Any:
        return self._chunk(index // _CHUNK)[index % _CHUNK]

    def _make_chunk(self, number: int) -> Any:
        import reasoning_gym

        digest = sha256(f"reasoning_gym {self._seed} {number}".encode()).digest()
        seed = int.from_bytes(digest[:4]) >> 1  # some datasets seed numpy, which takes 32 bits
        try:
            return reasoning_gym.create_dataset(self._dataset, seed=seed, size=_CHUNK, **self._parameters)
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"task.options: dataset {self._dataset!r} refuses {self._parameters}: {error}") from error


def entry_score(dataset: str, verifier: Any, answer: str, entry: Mapping[str, Any]) -> float:
    """The score of an answer to an entry of `dataset`, by `verifier`, a dataset of that name, or by ours; clipped to [0, 1]."""
    if len(answer) > _LONGEST_ANSWER:
        return 0.0
    entry = deepcopy(dict(entry))  # verifiers get their own: nothing forbids them to change it
    if is_not_a_number(answer, entry):
        return 0.0
    if own := OWN_VERIFIERS.get(dataset):
        return own(answer, entry, verifier.config)
    try:
        score = float(verifier.score_answer(answer, entry))
    except _REFUSALS:
        # The text comes from a policy in training, and the package's verifiers parse it with int(), json, split()[1] ...
        # What they cannot parse is a wrong answer. Errors that no text should cause (memory, files) pass through.
        return 0.0
    return min(1.0, max(0.0, score)) if math.isfinite(score) else 0.0


def dataset_problem(dataset: str, *, repeatable: bool = False) -> str:
    """The reason why a dataset cannot be used to judge answers, or, `repeatable`, to make problems; empty when it can."""
    from reasoning_gym.factory import DATASETS

    if dataset not in DATASETS:
        return f"reasoning-gym has no such dataset{did_you_mean(dataset, DATASETS)}"
    if dataset in EXECUTES_ANSWERS - OWN_VERIFIERS.keys():
        return "refused, its verifier executes what the policy writes; choose another"
    if repeatable and dataset in NOT_REPEATABLE:
        return "refused, its problems are not the same in every process; choose another"
    return ""


def extract_answer(response: str) -> str:
    """The text of the last <answer>...</answer>, else the whole response; stripped. Linear in its length."""
    before, opened, after = response.rpartition("<answer>")
    answer, closed, _ = after.partition("</answer>")
    return (answer if opened and closed else before + opened + after).strip()


def make_reasoning_gym(options: Mapping[str, Any], seed: int) -> ReasoningGym:
    """The task from `task.options`. Raises ValueError naming the dataset or option that is unknown, refused or out of bounds."""
    from reasoning_gym.factory import DATASETS

    dataset = text(options, "dataset", "chain_sum")
    if problem := dataset_problem(dataset, repeatable=True):
        raise ValueError(f"task.options.dataset={dataset!r}: {problem}")
    template = text(options, "prompt_template", "{question}\n")
    if "{question}" not in template:
        raise ValueError(f"task.options.prompt_template={template!r}: must contain {{question}}")
    own = {"dataset", "prompt_template"}
    parameters = {field.name for field in dataclasses.fields(DATASETS[dataset][1])} - {"seed", "size"}
    refuse_unknown(f"reasoning_gym/{dataset}", options, own | parameters)
    return ReasoningGym(dataset, {name: options[name] for name in options if name not in own}, template, seed)
