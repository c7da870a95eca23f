"""The cases of benchmarks/token_statistics.py and of the smoke test: this project's operations and their competitors, all of one shape.

Shapes: T tokens, H hidden size, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from megatron_entropic.doctor.speed import competitors
from megatron_entropic.doctor.speed.problem import KernelProblem
from megatron_entropic.entropy import linear_token_statistics, token_log_probs, token_statistics

ENTROPY_WEIGHT, CLAMPED_WEIGHT = 0.1, 0.05


Forward = Callable[[KernelProblem], list[Tensor]]
"""log-prob, entropy, clamped entropy, as many as the case computes; each [T]."""


@dataclass(frozen=True)
class KernelCase:
    """`forward` and autograd's backward of the weighted sum of its results.

    `package`: the other project it belongs to, if any; `missing`: why it cannot run here.
    """

    group: str
    name: str
    forward: Forward
    package: str = ""
    missing: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether this project computes it; plain torch and the released code of a paper are nobody's package either."""
        return self.name.startswith(("token_", "linear_token_"))


def loss(results: list[Tensor]) -> Tensor:
    weights = (1.0, ENTROPY_WEIGHT, CLAMPED_WEIGHT)
    return sum((weight * x.sum() for weight, x in zip(weights, results, strict=False)), results[0].new_zeros(()))


def ours(problem: KernelProblem) -> list[Tensor]:
    statistics = token_statistics(problem.logits, problem.targets_T, vocab_size=problem.vocab, validate=False)
    return [statistics.log_prob, statistics.entropy]


def ours_exact(problem: KernelProblem) -> list[Tensor]:
    """With what control.actuator=exact needs beside; it has no gradient."""
    arguments = {"vocab_size": problem.vocab, "mean_lowering": True, "validate": False}
    return list(token_statistics(problem.logits, problem.targets_T, **arguments)[:2])  # type: ignore[arg-type]


def ours_log_prob(problem: KernelProblem) -> list[Tensor]:
    return [token_log_probs(problem.logits, problem.targets_T, vocab_size=problem.vocab, validate=False)]


def ours_clamped(problem: KernelProblem) -> list[Tensor]:
    clamp = problem.clamp
    return [
        x
        for x in token_statistics(problem.logits, problem.targets_T, vocab_size=problem.vocab, clamp=clamp, validate=False)
        if x is not None
    ]


def plain(problem: KernelProblem) -> list[Tensor]:
    log_p_TV = problem.logits.float().log_softmax(-1)
    return [log_p_TV.gather(1, problem.targets_T[:, None]).squeeze(1), -(log_p_TV.exp() * log_p_TV).sum(-1)]


def plain_log_prob(problem: KernelProblem) -> list[Tensor]:
    return [problem.logits.float().log_softmax(-1).gather(1, problem.targets_T[:, None]).squeeze(1)]


def _masked_entropy(logits_TV: Tensor, kept_TV: Tensor) -> Tensor:
    q_TV = logits_TV.masked_fill(~kept_TV, -torch.inf)
    return q_TV.logsumexp(-1) - (q_TV.softmax(-1) * logits_TV.masked_fill(~kept_TV, 0.0)).sum(-1)


def _with_top_k(problem: KernelProblem, device: str | torch.device) -> list[Tensor]:
    """float32 logits, topk of the share of the vocabulary that is kept on `device`, a boolean mask of it, masked entropy."""
    logits_TV = problem.logits.float()
    log_prob_T, entropy_T = plain(problem)
    there_TV = logits_TV.detach().to(device)
    kept = problem.vocab - int(problem.clamp * problem.vocab)
    kept_TV = torch.zeros(there_TV.shape, dtype=torch.bool, device=device).scatter_(1, there_TV.topk(kept, dim=-1).indices, True)
    return [log_prob_T, entropy_T, _masked_entropy(logits_TV, kept_TV.to(logits_TV.device))]


def plain_clamped(problem: KernelProblem) -> list[Tensor]:
    return _with_top_k(problem, problem.logits.device)


def released_aent(problem: KernelProblem) -> list[Tensor]:
    return _with_top_k(problem, "cpu")


def ours_linear(problem: KernelProblem) -> list[Tensor]:
    statistics = linear_token_statistics(problem.hidden, problem.weight, problem.targets_T, vocab_size=problem.vocab, validate=False)
    return [statistics.log_prob, statistics.entropy]


def ours_linear_exact(problem: KernelProblem) -> list[Tensor]:
    arguments = {"vocab_size": problem.vocab, "mean_lowering": True, "validate": False}
    return list(linear_token_statistics(problem.hidden, problem.weight, problem.targets_T, **arguments)[:2])  # type: ignore[arg-type]


def ours_linear_clamped(problem: KernelProblem) -> list[Tensor]:
    arguments = {"vocab_size": problem.vocab, "clamp": problem.clamp, "validate": False}
    return [x for x in linear_token_statistics(problem.hidden, problem.weight, problem.targets_T, **arguments) if x is not None]  # type: ignore[arg-type]


def _needs(package: str, device: str, gpu: bool = False) -> dict[str, str]:
    """What a case of `package` says where it cannot run."""
    missing = "not installed" if find_spec(package) is None else "needs a GPU" if gpu and not device.startswith("cuda") else ""
    return {"package": package, "missing": missing}


def cases(device: str) -> list[KernelCase]:
    plain_entropy, clamped, linear = "log-prob + entropy", "with clamped entropy", "output layer"
    verl, verl_gpu = _needs("verl", device), _needs("verl", device, gpu=True)
    liger, liger_gpu = _needs("liger_kernel", device), _needs("liger_kernel", device, gpu=True)
    return [
        KernelCase(plain_entropy, "token_statistics", ours),
        KernelCase(plain_entropy, "token_statistics, mean lowering", ours_exact),
        KernelCase(plain_entropy, "plain torch", plain),
        KernelCase(plain_entropy, "verl, Megatron", competitors.verl_megatron, **verl),
        KernelCase(plain_entropy, "verl, Megatron, 4 chunks", competitors.verl_megatron_chunked, **verl),
        KernelCase(plain_entropy, "verl, FSDP", competitors.verl_fsdp, **verl),
        KernelCase(plain_entropy, "verl, FSDP, 4 chunks", competitors.verl_fsdp_chunked, **verl),
        KernelCase("log-prob", "token_log_probs", ours_log_prob),
        KernelCase("log-prob", "plain torch", plain_log_prob),
        KernelCase("log-prob", "Megatron-Core", competitors.megatron_log_prob, **_needs("megatron", device)),
        KernelCase("log-prob", "Liger-Kernel", competitors.liger_log_prob, **liger_gpu),
        KernelCase("log-prob", "Liger-Kernel, vocab-parallel", competitors.liger_vocab_parallel, **liger_gpu),
        KernelCase(clamped, "token_statistics", ours_clamped),
        KernelCase(
            clamped, "plain torch (topk mask)", plain_clamped, missing="" if device.startswith("cuda") else "same as the next on a CPU"
        ),
        KernelCase(clamped, "released AEnt (CPU topk)", released_aent),
        KernelCase(linear, "linear_token_statistics", ours_linear),
        KernelCase(linear, "linear_token_statistics, mean lowering", ours_linear_exact),
        KernelCase(linear, "linear_token_statistics, clamped", ours_linear_clamped),
        KernelCase(linear, "plain torch", plain),
        KernelCase(linear, "verl, fused (torch)", competitors.verl_linear, **verl),
        KernelCase(linear, "verl, fused (Triton)", competitors.verl_linear_triton, **verl_gpu),
        KernelCase(linear, "Liger-Kernel, fused", competitors.liger_linear, **liger),
    ]


def is_linear(case: KernelCase) -> bool:
    return case.group == "output layer"


def four_gemms(problem: KernelProblem) -> Mapping[str, Callable[[], None]]:
    """The products that no output layer does without when the logits are not kept: logits, logits again, two gradients."""

    def forward() -> None:
        problem.hidden.detach() @ problem.weight.detach().T

    def backward() -> None:
        hidden_TH, weight_VH = problem.hidden.detach(), problem.weight.detach()
        logits_TV = hidden_TH @ weight_VH.T
        logits_TV @ weight_VH
        logits_TV.T @ hidden_TH

    return {"forward": forward, "backward": backward}
