"""The cases of benchmarks/token_statistics.py: this project's operations and their competitors, all of one shape.

Shapes: T tokens, H hidden size, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from megatron_entropic.entropy import linear_token_statistics, token_log_probs, token_statistics

ENTROPY_WEIGHT, CLAMPED_WEIGHT = 0.1, 0.05


@dataclass
class Problem:
    """The inputs of every case; `logits_TV` only for the cases on logits, hidden and weight only for the output layer."""

    targets_T: Tensor
    clamp: float
    logits_TV: Tensor | None = None
    hidden_TH: Tensor | None = None
    weight_VH: Tensor | None = None

    @classmethod
    def make(cls, tokens: int, vocab: int, hidden: int, dtype: torch.dtype, device: str, clamp: float, linear: bool) -> "Problem":
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int, scale: float) -> Tensor:
            return (torch.randn(*shape, generator=generator, device=device) * scale).to(dtype).requires_grad_()

        problem = cls(torch.randint(vocab, (tokens,), generator=generator, device=device), clamp)
        if linear:
            problem.hidden_TH, problem.weight_VH = normal(tokens, hidden, scale=1.0), normal(vocab, hidden, scale=3 * hidden**-0.5)
        else:
            problem.logits_TV = normal(tokens, vocab, scale=3.0)
        return problem

    @property
    def leaves(self) -> list[Tensor]:
        return [x for x in (self.logits_TV, self.hidden_TH, self.weight_VH) if x is not None]

    @property
    def logits(self) -> Tensor:
        """[T, V], given or computed from hidden states with autograd."""
        if self.logits_TV is not None:
            return self.logits_TV
        return self.hidden @ self.weight.T

    @property
    def hidden(self) -> Tensor:
        assert self.hidden_TH is not None
        return self.hidden_TH

    @property
    def weight(self) -> Tensor:
        assert self.weight_VH is not None
        return self.weight_VH

    @property
    def vocab(self) -> int:
        return self.leaves[-1].shape[0 if self.logits_TV is None else 1]


Forward = Callable[[Problem], list[Tensor]]
"""log-prob, entropy, clamped entropy, as many as the case computes; each [T]."""


@dataclass(frozen=True)
class Case:
    """`forward` and autograd's backward of the weighted sum of its results; `missing`: why it cannot run here."""

    group: str
    name: str
    forward: Forward
    missing: str = ""


def loss(results: list[Tensor]) -> Tensor:
    weights = (1.0, ENTROPY_WEIGHT, CLAMPED_WEIGHT)
    return sum((weight * x.sum() for weight, x in zip(weights, results, strict=False)), results[0].new_zeros(()))


def ours(problem: Problem) -> list[Tensor]:
    statistics = token_statistics(problem.logits, problem.targets_T, vocab_size=problem.vocab, validate=False)
    return [statistics.log_prob, statistics.entropy]


def ours_log_prob(problem: Problem) -> list[Tensor]:
    return [token_log_probs(problem.logits, problem.targets_T, vocab_size=problem.vocab, validate=False)]


def ours_clamped(problem: Problem) -> list[Tensor]:
    clamp = problem.clamp
    return [
        x
        for x in token_statistics(problem.logits, problem.targets_T, vocab_size=problem.vocab, clamp=clamp, validate=False)
        if x is not None
    ]


def plain(problem: Problem) -> list[Tensor]:
    log_p_TV = problem.logits.float().log_softmax(-1)
    return [log_p_TV.gather(1, problem.targets_T[:, None]).squeeze(1), -(log_p_TV.exp() * log_p_TV).sum(-1)]


def plain_log_prob(problem: Problem) -> list[Tensor]:
    return [problem.logits.float().log_softmax(-1).gather(1, problem.targets_T[:, None]).squeeze(1)]


def _masked_entropy(logits_TV: Tensor, kept_TV: Tensor) -> Tensor:
    q_TV = logits_TV.masked_fill(~kept_TV, -torch.inf)
    return q_TV.logsumexp(-1) - (q_TV.softmax(-1) * logits_TV.masked_fill(~kept_TV, 0.0)).sum(-1)


def _with_top_k(problem: Problem, device: str | torch.device) -> list[Tensor]:
    """float32 logits, topk of the share of the vocabulary that is kept on `device`, a boolean mask of it, masked entropy."""
    logits_TV = problem.logits.float()
    log_prob_T, entropy_T = plain(problem)
    there_TV = logits_TV.detach().to(device)
    kept = problem.vocab - int(problem.clamp * problem.vocab)
    kept_TV = torch.zeros(there_TV.shape, dtype=torch.bool, device=device).scatter_(1, there_TV.topk(kept, dim=-1).indices, True)
    return [log_prob_T, entropy_T, _masked_entropy(logits_TV, kept_TV.to(logits_TV.device))]


def plain_clamped(problem: Problem) -> list[Tensor]:
    return _with_top_k(problem, problem.logits.device)


def released_aent(problem: Problem) -> list[Tensor]:
    return _with_top_k(problem, "cpu")


def ours_linear(problem: Problem) -> list[Tensor]:
    statistics = linear_token_statistics(problem.hidden, problem.weight, problem.targets_T, vocab_size=problem.vocab, validate=False)
    return [statistics.log_prob, statistics.entropy]


def ours_linear_clamped(problem: Problem) -> list[Tensor]:
    arguments = {"vocab_size": problem.vocab, "clamp": problem.clamp, "validate": False}
    return [x for x in linear_token_statistics(problem.hidden, problem.weight, problem.targets_T, **arguments) if x is not None]  # type: ignore[arg-type]


def liger_log_prob(problem: Problem) -> list[Tensor]:
    from liger_kernel.transformers.functional import liger_cross_entropy  # type: ignore[import-not-found]  # an optional extra

    return [-liger_cross_entropy(problem.logits.clone(), problem.targets_T, reduction="none")]  # it overwrites its input


def verl(problem: Problem) -> list[Tensor]:
    from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits  # type: ignore[import-not-found]

    logits_TV = problem.logits
    return [logprobs_from_logits(logits_TV, problem.targets_T, inplace_backward=False), entropy_from_logits(logits_TV)]


def cases(device: str) -> list[Case]:
    no_liger = "" if find_spec("liger_kernel") else "not installed"
    if not no_liger and not device.startswith("cuda"):
        no_liger = "needs a GPU"
    no_verl = "" if find_spec("verl") else "not installed"
    plain_entropy, clamped, linear = "log-prob + entropy", "with clamped entropy", "output layer"
    return [
        Case(plain_entropy, "token_statistics", ours),
        Case(plain_entropy, "plain torch", plain),
        Case(plain_entropy, "verl", verl, no_verl),
        Case("log-prob", "token_log_probs", ours_log_prob),
        Case("log-prob", "plain torch", plain_log_prob),
        Case("log-prob", "Liger-Kernel", liger_log_prob, no_liger),
        Case(clamped, "token_statistics", ours_clamped),
        Case(clamped, "plain torch (topk mask)", plain_clamped, "" if device.startswith("cuda") else "same as the next on a CPU"),
        Case(clamped, "released AEnt (CPU topk)", released_aent),
        Case(linear, "linear_token_statistics", ours_linear),
        Case(linear, "linear_token_statistics, clamped", ours_linear_clamped),
        Case(linear, "plain torch", plain),
    ]


def is_linear(case: Case) -> bool:
    return case.group == "output layer"


def four_gemms(problem: Problem) -> Mapping[str, Callable[[], None]]:
    """The products that no output layer does without when the logits are not kept: logits, logits again, two gradients."""

    def forward() -> None:
        problem.hidden.detach() @ problem.weight.detach().T

    def backward() -> None:
        hidden_TH, weight_VH = problem.hidden.detach(), problem.weight.detach()
        logits_TV = hidden_TH @ weight_VH.T
        logits_TV @ weight_VH
        logits_TV.T @ hidden_TH

    return {"forward": forward, "backward": backward}
