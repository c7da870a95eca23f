"""A case's errors against float64.

Shapes: T tokens, V vocabulary.
"""

import torch
from torch import Tensor

from megatron_entropic.doctor.speed.cases import KernelCase, loss
from megatron_entropic.doctor.speed.problem import KernelProblem


def float64_errors(case: KernelCase, problem: KernelProblem) -> dict[str, float]:
    """Largest error of the values (relative beyond 1) and of the gradient, against float64 from the same rounded inputs."""
    exact = KernelProblem(problem.targets_T, problem.clamp)  # taken before: verl's backward leaves the logits rounded once more
    exact.logits_TV, exact.hidden_TH, exact.weight_VH = (
        None if x is None else x.detach().double().requires_grad_() for x in (problem.logits_TV, problem.hidden_TH, problem.weight_VH)
    )
    results = case.forward(problem)
    torch.autograd.backward(loss(results))
    values = [x.detach().double() for x in results]
    reference = _defined(exact, clamped=len(values) == 3)
    torch.autograd.backward(loss(reference[: len(values)]))
    value_error = max(float(((a - b).abs() / b.abs().clamp(min=1)).max().detach()) for a, b in zip(values, reference, strict=False))
    pairs = zip(problem.leaves, exact.leaves, strict=True)
    gradient_error = max(float((a.grad - b.grad).abs().max()) for a, b in pairs if a.grad is not None and b.grad is not None)
    return {"value_error": value_error, "gradient_error": gradient_error}


def _defined(exact: KernelProblem, *, clamped: bool) -> list[Tensor]:
    """Log-prob, entropy and, when `clamped`, clamped entropy, each [T] float64, written the obvious way."""
    log_p_TV = exact.logits.log_softmax(-1)
    values = [log_p_TV.gather(1, exact.targets_T[:, None]).squeeze(1), -(log_p_TV.exp() * log_p_TV).sum(-1)]
    if clamped:
        kept = exact.vocab - int(exact.clamp * exact.vocab)
        kept_TV = log_p_TV.argsort(dim=1, descending=True, stable=True)[:, :kept]
        q_TV = log_p_TV.gather(1, kept_TV).log_softmax(-1)
        values.append(-(q_TV.exp() * q_TV).sum(-1))
    return values
