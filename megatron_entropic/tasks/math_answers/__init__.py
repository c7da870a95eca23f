"""Whether an answer means the known one: exact where that can be decided, by computer algebra where not, no where in doubt."""

from megatron_entropic.tasks.math_answers.boxes import boxed, boxed_or_marked
from megatron_entropic.tasks.math_answers.verifier import MathVerifier, make_math_verifier, unreadable

__all__ = ["MathVerifier", "boxed", "boxed_or_marked", "make_math_verifier", "unreadable"]
