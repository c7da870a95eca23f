"""The curriculum: what is passed over, and that its state continues to the last bit whenever it is taken."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_entropic.config import DataConfig
from megatron_entropic.tasks.data.curriculum import Curriculum
from megatron_entropic.tasks.task import Problem

PROMPTS = 10


def problem(number: int) -> Problem:
    return Problem(f"prompt {number % PROMPTS}")


def rewards(name: str) -> list[float]:
    """Prompts 0 to 3 are always right, 4 and 5 always wrong, the others in between."""
    number = int(name.split()[1])
    return [1.0, 1.0] if number < 4 else [0.0, 0.0] if number < 6 else [0.0, 1.0]


def asked(curriculum: Curriculum, steps: int, ahead: int = 0) -> list[list[str]]:
    """Prompts of steps of four, each measured when the next but `ahead` is asked for."""
    found: list[list[str]] = []
    for step in range(steps):
        if step > ahead:
            for name in found[step - ahead - 1]:
                curriculum.measured(Problem(name), rewards(name))
            curriculum.settle()
        found.append([problem(curriculum.next(problem)).prompt for _ in range(4)])
    return found


def test_what_is_always_right_or_wrong_is_drawn_less() -> None:
    data = DataConfig(curriculum=True, curriculum_keep=0.25)
    found = [name for step in asked(Curriculum(data, 0), 300) for name in step]
    counts = [sum(name == f"prompt {number}" for name in found) for number in range(PROMPTS)]
    between = sum(counts[6:]) / 4
    for number in range(6):
        assert 0.15 < counts[number] / between < 0.4, counts
    assert max(counts[6:]) - min(counts[6:]) <= 8  # these come in turn


def test_nothing_is_passed_over_before_it_was_asked_or_where_all_is_kept() -> None:
    assert [name for step in asked(Curriculum(DataConfig(), 0), 2) for name in step] == [problem(number).prompt for number in range(8)]
    kept = asked(Curriculum(DataConfig(curriculum_keep=1.0), 0), 20)
    assert [name for step in kept for name in step] == [problem(number).prompt for number in range(80)]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 3), st.booleans())
def test_a_saved_state_asks_again_for_what_came_after_it(step: int, seed: int, drawn_already: bool) -> None:
    """Whether the prompts of the next step were drawn before the state was taken, or not."""
    data = DataConfig(curriculum=True)
    whole = asked(Curriculum(data, seed), 20)
    first = Curriculum(data, seed)
    assert asked(first, step) == whole[:step]
    for name in whole[step - 1]:
        first.measured(Problem(name), rewards(name))
    first.settle()
    if drawn_already:
        for _ in range(4):
            first.next(problem)
        first.measured(Problem("prompt 7"), [1.0])  # of the step under way: not part of the state yet
    resumed = Curriculum(data, seed)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [problem(resumed.next(problem)).prompt for _ in range(4)] == whole[step]
    assert resumed.state_dict() == first.state_dict()


def test_the_state_of_many_prompts_is_small() -> None:
    curriculum = Curriculum(DataConfig(), 0)
    curriculum._rates = {number * 18446744073: (number % 9) / 8 for number in range(100_000)}
    text = json.dumps(curriculum.state_dict())
    assert len(text) < 1_500_000
    other = Curriculum(DataConfig(), 0)
    other.load_state_dict(json.loads(text))
    assert other._rates == curriculum._rates
