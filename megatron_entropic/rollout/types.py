"""What travels between prompts, engines and the trainer: plain frozen records, JSON-able, no tensors."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from megatron_entropic.errors import ReportedError

NamedWeights = Iterable[tuple[str, Tensor]]
"""Hugging Face names with whole (unsharded) tensors, in a fixed order, produced lazily."""


@dataclass(frozen=True)
class Prompt:
    """One prompt as the engines see it. `index` is its place in the run's data order, and seeds its sampling."""

    index: int
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Rollout:
    """One sampled response.

    `log_probs[i]` is the sampler's log-probability (nats, at the sampling temperature) of `response_ids[i]`; the response
    includes the end-of-sequence token when one was sampled. `first_version <= last_version` are the weight versions that
    produced its first and last token. `finish_reason` is "stop" (end of sequence) or "length".
    """

    prompt_index: int
    sample_index: int
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    text: str
    finish_reason: str
    first_version: int
    last_version: int
    server: str


Finished = Callable[[Sequence[Rollout]], None]
"""Takes all rollouts of one prompt; returns at once."""


class RolloutEngine(Protocol):
    """A source of rollouts, driven by one process (rank 0)."""

    def start(self) -> None:
        """Returns once `generate` can be called; a fleet waits for its servers here. Raises RolloutError."""
        ...

    def generate(self, prompts: Sequence[Prompt], samples_per_prompt: int, finished: Finished | None = None) -> list[Rollout]:
        """`samples_per_prompt` rollouts of every prompt, ordered by prompt, then sample. Raises RolloutError.

        An engine that has some prompts before others calls `finished` with each prompt's rollouts as they come, in any order
        and from any thread; other engines do not call it.
        """
        ...

    def sync_weights(self, weights: NamedWeights, version: int) -> None:
        """Replaces the weights by `weights`; later rollouts carry `version`. Drains `weights` always. Raises RolloutError."""
        ...

    def close(self) -> None:
        """Ends every process and connection the engine owns; safe to call twice."""
        ...


class RolloutError(ReportedError, RuntimeError):
    """An engine failed; the message names the server and what to do."""
