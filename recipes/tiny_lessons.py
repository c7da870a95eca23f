"""Lessons of make_tiny_model.py: for each task its examples, when to stop, and the words on the model's card."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from megatron_entropic.tasks.addition import Addition
from megatron_entropic.tasks.decompose import Decompose

WRONG_DIGITS = 0.22
"""Fraction of the digits in addition's answers that are drawn anew: what leaves its only right answer an entropy to lose."""

TinyTask = Decompose | Addition


@dataclass(frozen=True)
class Lesson:
    """A task with its default options (`task(seed)`), supervised (prompt, answer) pairs, and when to stop.

    Training ends after `steps` steps, or when avg@8 first reaches `accuracy`.
    On the card, `about` follows "A ... Qwen3 that answers", `data` describes the pairs, and `use` is all that it is good for.
    """

    task: Callable[[int], TinyTask]
    example: Callable[[Random], tuple[str, str]]
    steps: int
    accuracy: float
    about: str
    data: str
    use: str


def decompose_example(rng: Random) -> tuple[str, str]:
    """A right answer whose first term is uniform in [0, total]."""
    total = rng.randint(Decompose.low, Decompose.high)
    first = rng.randint(0, total)
    return f"{total}=", f"{first}+{total - first}"


def addition_example(rng: Random) -> tuple[str, str]:
    """The sum, in which every digit is replaced with probability WRONG_DIGITS by one uniform in 0 to 9 (it may stay the same)."""
    first, second = rng.randint(Addition.low, Addition.high), rng.randint(Addition.low, Addition.high)
    answer = "".join(rng.choice("0123456789") if rng.random() < WRONG_DIGITS else digit for digit in str(first + second))
    return f"{first}+{second}=", answer


LESSONS = {
    "decompose": Lesson(
        task=Decompose,
        example=decompose_example,
        steps=4000,
        accuracy=0.8,
        about="""\
"347=" with two numbers that add up to 347. Every such pair is right, so a policy can stay diverse and be right. It is the
starting policy of the quickstart and of the tests, warmed up by supervised learning and stopped early: most of its samples
are right, not all.""",
        data=f"totals uniform in [{Decompose.low}, {Decompose.high}], first term uniform in [0, total]; every label is right.",
        use="decomposing numbers",
    ),
    "addition": Lesson(
        task=Addition,
        example=addition_example,
        steps=1500,
        accuracy=1.0,  # out of reach with wrong digits, so that the steps end it
        about="""\
"37+58=" with 95. One answer is right, so a policy that learns the task has no entropy left to keep, and a group whose
samples are all right has no advantage to control it with: where entropy control is hard. Its samples carry the wrong digits
it was warmed up on; its greedy answers are nearly all right.""",
        data=f"""\
operands uniform in [{Addition.low}, {Addition.high}]; {WRONG_DIGITS:.0%} of the answers' digits are drawn anew, uniform in 0 to 9.""",
        use="adding numbers",
    ),
}
