"""The inputs that all cases of the benchmark of token statistics share.

Shapes: T tokens, H hidden size, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class KernelProblem:
    """The inputs of every case; `logits_TV` only for the cases on logits, hidden and weight only for the output layer."""

    targets_T: Tensor
    clamp: float
    logits_TV: Tensor | None = None
    hidden_TH: Tensor | None = None
    weight_VH: Tensor | None = None

    @classmethod
    def make(cls, tokens: int, vocab: int, hidden: int, dtype: torch.dtype, device: str, clamp: float, linear: bool) -> "KernelProblem":
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
