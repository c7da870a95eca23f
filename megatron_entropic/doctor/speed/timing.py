"""A case as steps that a clock can time, after a first run in which code is compiled."""

import textwrap

import torch

from megatron_entropic.doctor.speed.cases import KernelCase, loss
from megatron_entropic.doctor.speed.measure import Timed
from megatron_entropic.doctor.speed.problem import KernelProblem


def warm_up(case: KernelCase, problem: KernelProblem) -> str:
    """One run untimed, in which code is compiled; gives what another project's code raised, if it did (ours raises it)."""
    try:
        torch.autograd.backward(loss(case.forward(problem)))
    except Exception as error:
        if not case.package:
            raise
        first_line = str(error).partition("\n")[0].replace("|", "/")
        return f"fails: {type(error).__name__}: {textwrap.shorten(first_line, 100, placeholder=' ...')}"
    finally:
        for leaf in problem.leaves:
            leaf.grad = None
    return ""


def steps_of(case: KernelCase, problem: KernelProblem) -> dict[str, Timed]:
    """Forward, then backward of what forward left; to be run in this order."""
    left: list[torch.Tensor] = []

    def forward() -> None:
        left.append(loss(case.forward(problem)))

    def backward() -> None:
        torch.autograd.backward(left.pop())
        for leaf in problem.leaves:
            leaf.grad = None

    return {f"{case.name}/forward": forward, f"{case.name}/backward": backward}
