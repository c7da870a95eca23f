"""Whether two maths answers mean the same, for callers outside of a run: in one process of its own, within limits."""

from megatron_entropic.tasks.math_answers import boxed, make_math_verifier
from megatron_entropic.tasks.task import Problem
from megatron_entropic.tasks.verification import Limits, VerifierSpec, VerifierWorker

FACTORY = f"{make_math_verifier.__module__}:{make_math_verifier.__name__}"
"""Makes the verifier in whatever process is to judge."""


class MathChecker:
    """The process, started when first needed, and again after an answer ended it. For one thread at a time."""

    def __init__(self) -> None:
        self._worker = VerifierWorker(VerifierSpec(FACTORY, {}, 0), Limits())

    def start(self) -> None:
        """Starts the process. Raises VerifierError when math-verify does not load."""
        self._worker.start()

    def same(self, known: str, answer: str) -> bool:
        """Whether `answer`, as it stands in a box, means `known`; False for what cannot be read, and at the limits."""
        response = rf"\boxed{{{answer}}}"
        whole = boxed(response) == answer.strip()  # else a brace in the answer ends the box before its end
        return whole and self._worker.judge(Problem("", {"answer": known}), response).score == 1.0

    def close(self) -> None:
        """Ends the process; safe to call twice."""
        self._worker.close()

    def __del__(self) -> None:
        self.close()
