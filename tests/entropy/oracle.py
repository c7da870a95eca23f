"""The statistics again, written straight from their definition: float64, one row at a time, no shared code.

Shapes: N rows, V vocabulary columns, C columns with padding.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

NAMES = ("log_prob", "entropy", "clamped_entropy", "mean_lowering")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CLAMPS = (None, 0.0, 1e-9, 0.1, 0.4, 0.999)


@dataclass
class Problem:
    """One call: logits_NC as given, and everything else `token_statistics` takes; weights_3N: gradients of the first three."""

    logits_NC: Tensor
    targets_N: Tensor
    vocab_size: int
    temperature: float = 1.0
    clamp: float | None = None
    mask_N: Tensor | None = None
    mean_lowering: bool = False
    weights_3N: Tensor = field(default_factory=lambda: torch.empty(0))

    def arguments(self) -> dict[str, object]:
        return {
            "vocab_size": self.vocab_size,
            "temperature": self.temperature,
            "clamp": self.clamp,
            "mask": self.mask_N,
            "mean_lowering": self.mean_lowering,
        }


def expected(problem: Problem) -> tuple[list[Tensor | None], Tensor]:
    """([log_prob, entropy, clamped entropy, mean lowering], gradient_NC of the finite ones' weighted sum), float64."""
    logits_NC = problem.logits_NC.detach().double()
    results = torch.zeros(4, len(logits_NC), dtype=torch.float64)
    grad_NC = torch.zeros_like(logits_NC)
    for row in range(len(logits_NC)):
        if problem.mask_N is not None and not problem.mask_N[row]:
            continue
        x_V = logits_NC[row, : problem.vocab_size].clone().requires_grad_()
        ids = [i for i, x in enumerate(x_V.tolist()) if x != -math.inf]
        possible = set(ids)
        target = int(problem.targets_N[row])
        log_p = (x_V[ids] / problem.temperature).log_softmax(0)
        log_prob = log_p[ids.index(target)] if target in possible else torch.tensor(-math.inf, dtype=torch.float64)
        kept = [i for i in kept_ids(x_V.tolist(), problem.clamp or 0.0) if i in possible]
        values = [log_prob, entropy_of(log_p), entropy_of((x_V[kept] / problem.temperature).log_softmax(0))]
        lowering = (log_p.exp() ** 2 * (log_p + values[1])).sum()
        results[:, row] = torch.stack([*values, lowering]).detach()
        if problem.clamp is None:
            values = values[:2]
        weights = problem.weights_3N[:, row].double()
        if target not in possible:  # log p_y = z_y - logsumexp(z): the gradient is 1 at the target, -p elsewhere, all the same
            grad_NC[row, target] += weights[0] / problem.temperature
            values[0] = -(x_V[ids] / problem.temperature).logsumexp(0)
        total = sum(weight * value for weight, value in zip(weights, values, strict=False))
        assert isinstance(total, Tensor)
        grad_NC[row, : problem.vocab_size] += torch.autograd.grad(total, x_V)[0]
    clamped_N, lowering_N = None if problem.clamp is None else results[2], results[3] if problem.mean_lowering else None
    return [results[0], results[1], clamped_N, lowering_N], grad_NC


def kept_ids(logits: list[float], clamp: float) -> list[int]:
    """The V - floor(clamp V) largest, lowest ids first among equals."""
    count = len(logits) - math.floor(clamp * len(logits))
    return sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:count]


def entropy_of(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p).sum()


def random_problem(seed: int, rows: int, vocab_size: int, padding: int, dtype: torch.dtype) -> Problem:
    """A problem of any kind there is: scales, offsets, ties, -inf, masks, all drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)

    def pick(options: tuple[float, ...]) -> float:
        return options[int(torch.randint(len(options), (), generator=generator))]

    logits = torch.randn(rows, vocab_size, generator=generator, dtype=torch.float64) * pick((0.0, 1.0, 1.0, 5.0, 30.0, 1e4))
    if pick((0, 1)):
        logits = logits.round()
    logits += pick((0.0, 0.0, -3e4, 1e4))
    forbidden = torch.rand(rows, vocab_size, generator=generator) < pick((0.0, 0.0, 0.3, 0.95))
    survivor = torch.randint(vocab_size, (rows, 1), generator=generator)
    logits = logits.masked_fill(forbidden.scatter(1, survivor, False), -math.inf)
    garbage = torch.tensor([math.nan, math.inf, 1e30, -math.inf])[torch.arange(padding) % 4].expand(rows, padding)
    mask = (None, torch.rand(rows, generator=generator) < 0.6, torch.zeros(rows, dtype=torch.bool))[int(pick((0, 0, 1, 1, 2)))]
    targets = torch.randint(vocab_size, (rows,), generator=generator)
    if mask is not None:
        targets = torch.where(mask, targets, -100)
    return Problem(
        torch.cat([logits.clamp(min=-6e4).masked_fill(logits == -math.inf, -math.inf), garbage], 1).to(dtype),
        targets,
        vocab_size,
        temperature=pick((0.3, 0.6, 1.0, 1.0, 2.5)),
        clamp=CLAMPS[int(torch.randint(len(CLAMPS), (), generator=generator))],
        mask_N=mask,
        mean_lowering=bool(seed % 2),
        weights_3N=torch.randn(3, rows, generator=generator),
    )


def assert_close(actual: Tensor, reference: Tensor, tolerance: float, relative: float = 0.0, what: str = "") -> None:
    """Within `tolerance`, absolute up to 1 and relative beyond, plus `relative` of the reference; infinities equal, no NaN."""
    actual, reference = actual.detach().double(), reference.detach().double()
    assert actual.shape == reference.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(reference.shape)}"
    finite = reference.isfinite()
    assert torch.equal(actual[~finite], reference[~finite]), f"{what}: {actual[~finite]} where {reference[~finite]} is expected"
    error = (actual - reference).abs()[finite]
    allowed = (tolerance * reference.abs().clamp(min=1) + relative * reference.abs())[finite]
    assert bool((error <= allowed).all()), f"{what}: off by {float((error / allowed).max()):.3g} times the tolerance"


def gradient_rounding(dtype: torch.dtype) -> float:
    """Relative error of storing a gradient in `dtype`."""
    return 0.0 if dtype in (torch.float32, torch.float64) else torch.finfo(dtype).eps


def weighted_sum(statistics: tuple[Tensor | None, ...], weights_3N: Tensor) -> Tensor:
    """The scalar whose gradient is checked; infinite log-probs (targets that are ruled out) count by their gradient alone."""
    total = torch.zeros(())
    for value, weight_N in zip(statistics[:3], weights_3N, strict=True):
        if value is not None:
            total = total + (value.reshape(-1) * weight_N).sum()
    return total
