"""Data passed between prompts, engines and the trainer: plain frozen records, no tensors. Tokens are numpy arrays."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from dataclasses import field as dataclass_field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from megatron_entropic.errors import ReportedError

if TYPE_CHECKING:  # reports read rollouts too, and do without torch, which takes a second to import
    from torch import Tensor

NamedWeights: TypeAlias = "Iterable[tuple[str, Tensor]]"
"""Hugging Face names with whole (unsharded) tensors, in a fixed order, produced lazily."""


IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Prompt:
    """One prompt as the engines see it. `index` is its position in the run's data order, and seeds its sampling."""

    index: int
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class SamplingParameters:
    """Sampling that is not the run's own, such as validation's. `seed` is of 63 bits; which random numbers a sample gets depends on
    (seed, prompt index, sample index) alone: not on the weights' version, as in training.

    Tokens come from the likeliest ones that hold `top_p` of the probability, and log-probs are of that; temperature 0 is greedy.
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int


@dataclass(frozen=True, eq=False)
class Rollout:
    """One sampled response. Token ids are int32 [tokens], log-probs float32 [tokens]; rollouts of a prompt may share its array.

    `log_probs[i]` is the sampler's log-probability (nats, at the sampling temperature) of `response_ids[i]`; the response
    includes the end-of-sequence token when one was sampled. `first_version <= last_version` are the weight versions that
    produced its first and last token. `finish_reason` is "stop" (end of sequence) or "length".
    """

    prompt_index: int
    sample_index: int
    prompt_ids: IntArray
    response_ids: IntArray
    log_probs: FloatArray
    text: str
    finish_reason: str
    first_version: int
    last_version: int
    server: str

    def __eq__(self, other: object) -> bool:
        """Whether every field is equal, arrays element by element."""
        if not isinstance(other, Rollout):
            return NotImplemented
        return all(_equal(getattr(self, field.name), getattr(other, field.name)) for field in fields(self))

    def __hash__(self) -> int:
        return hash((self.prompt_index, self.sample_index, self.first_version, self.last_version, self.text))


def _equal(one: Any, other: Any) -> bool:
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else bool(one == other)


Finished = Callable[[Sequence[Rollout]], None]
"""Takes all rollouts of one prompt; returns at once."""


class RolloutEngine(Protocol):
    """A source of rollouts, driven by one process (rank 0). `make(cfg: Config)` of the table ENGINES makes one.

    in_background: whether it computes in other processes, so that it can generate while the policy is updated.
    """

    in_background: bool

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

    def seek(self, step: int) -> None:
        """Says that `step` is the first that will be generated, when a run is resumed. Raises RolloutError."""
        ...

    def close(self) -> None:
        """Ends every process and connection the engine owns; safe to call twice."""
        ...


class SamplingEngine(RolloutEngine, Protocol):
    """An engine that also samples otherwise than the run, as validation needs. It computes nothing else meanwhile."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        samples_per_prompt: int,
        finished: Finished | None = None,
        sampling: SamplingParameters | None = None,
    ) -> list[Rollout]:
        """As a RolloutEngine's; by `sampling` instead of by the run's settings where it is given."""
        ...


ENGINE_PARTS = ("in_background", "start", "generate", "sync_weights", "seek", "close")
"""Of a RolloutEngine."""


@dataclass(frozen=True)
class MetricsServer:
    """A server that answers GET `url`/metrics, in Prometheus' text format, to who sends `headers`, which hold its key."""

    name: str
    url: str
    headers: Mapping[str, str] = dataclass_field(repr=False)


class RolloutError(ReportedError, RuntimeError):
    """An engine failed; the message names the server and what to do."""


class ServerLostError(RolloutError):
    """A server died, or no longer answers."""
