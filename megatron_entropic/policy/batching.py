"""From samples to packed micro-batches: which rank trains what, and the tensors of one forward pass.

Every rank knows the lengths and advantages of the whole batch and plans it by the same deterministic rule, so counts are global
without a collective. The tokens of a sample are where it is trained on (dealing.py).

Shapes: T packed positions of a micro-batch, B sequences in it, N response tokens of the whole batch.
"""

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One rollout as the loss sees it: int32 ids and float32 log-probs. `sampler_log_probs[i]` belongs to `response_ids[i]`."""

    prompt_ids: Sequence[int] | npt.NDArray[np.int32]
    response_ids: Sequence[int] | npt.NDArray[np.int32]
    sampler_log_probs: Sequence[float] | npt.NDArray[np.float32]
    advantage: float

    @property
    def response_length(self) -> int:
        return len(self.response_ids)

    @property
    def length(self) -> int:
        """Positions of the forward pass: the last token is predicted but never fed."""
        return len(self.prompt_ids) + len(self.response_ids) - 1


@dataclass(frozen=True)
class SampleElsewhere:
    """A sample of the batch that other ranks train on. Lengths in tokens."""

    prompt_length: int
    response_length: int
    advantage: float

    @property
    def length(self) -> int:
        """As Sample.length."""
        return self.prompt_length + self.response_length - 1


def held(sample: Sample | SampleElsewhere) -> Sample:
    """The sample, whose tokens this rank must have."""
    assert isinstance(sample, Sample), "the plan of a batch asks for a sample that was dealt to other ranks"
    return sample


@dataclass
class Batch:
    """All samples of one step, with the same lengths and advantages on every rank.

    `old_log_probs_N` (set by Policy.prepare when there are several updates per step, or stale rollouts) holds the log-probs of all
    response tokens, sample after sample, under the policy before the first update; `old_version` counts the updates it had.
    `selected_N` (bool, set by Policy.update for one mini-batch): the tokens that Clip-Cov or KL-Cov act on.
    """

    samples: Sequence[Sample | SampleElsewhere]
    old_log_probs_N: Tensor | None = None
    old_version: int | None = None
    selected_N: Tensor | None = None
    offsets: list[int] = field(init=False)

    def __post_init__(self) -> None:
        for index, sample in enumerate(self.samples):
            if not sample.response_length or sample.length < sample.response_length:
                raise ValueError(f"sample {index} has an empty prompt or response; both need at least one token")
            if isinstance(sample, Sample) and len(sample.response_ids) != len(sample.sampler_log_probs):
                raise ValueError(
                    f"sample {index} has {len(sample.response_ids)} response tokens but {len(sample.sampler_log_probs)} log-probs"
                )
        self.offsets = [0]
        for sample in self.samples:
            self.offsets.append(self.offsets[-1] + sample.response_length)

    @property
    def response_tokens(self) -> int:
        return self.offsets[-1]

    def mini_batches(self, count: int) -> list["Batch"]:
        """`count` batches of consecutive samples (whole groups: the config checks the division), with their old log-probs."""
        size = len(self.samples) // count
        parts = []
        for start in range(0, len(self.samples), size):
            stop = start + size
            old = None if self.old_log_probs_N is None else self.old_log_probs_N[self.offsets[start] : self.offsets[stop]]
            parts.append(Batch(self.samples[start:stop], old, self.old_version))
        return parts


@dataclass(frozen=True)
class MicroBatch:
    """The tensors of one packed forward pass (int64, bool and float32; on the policy's device).

    tokens_1T, positions_1T: inputs; targets_T: the next token; mask_T: the target is a response token; cu_seqlens: [B + 1]
    int32 borders of the packed sequences; advantages_T, sampler_log_probs_T, old_log_probs_T, selected_T: 0 outside the mask;
    response_index_T: index of the target in the batch's flat response tokens, -1 outside the mask.
    """

    tokens_1T: Tensor
    positions_1T: Tensor
    targets_T: Tensor
    mask_T: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    advantages_T: Tensor
    sampler_log_probs_T: Tensor
    old_log_probs_T: Tensor | None
    selected_T: Tensor | None
    response_index_T: Tensor

    @property
    def response_tokens(self) -> int:
        return int(self.mask_T.sum())


def plan_micro_batches(lengths: Sequence[int], *, data_parallel: int, max_tokens: int) -> list[list[list[int]]]:
    """Samples of each micro-batch of each data-parallel rank: plan[rank][micro_batch] -> sample indices.

    Longest sequence first into the emptiest bin, with the fewest bins that hold at most `max_tokens` each; every rank gets
    the same number of bins (pipeline schedules run in step), some possibly empty. Deterministic.

    Raises:
        ValueError: one sequence alone exceeds `max_tokens`.
    """
    longest = max(lengths, default=0)
    if longest > max_tokens:
        raise ValueError(
            f"a sequence of {longest} tokens does not fit batch.max_tokens_per_micro_batch={max_tokens}; raise it to at least that"
        )
    per_rank = max(1, -(-sum(lengths) // (data_parallel * max_tokens)))
    while (bins := _fill_bins(lengths, data_parallel * per_rank, max_tokens)) is None:
        per_rank += 1
    bins.sort(key=lambda indices: -sum(lengths[i] for i in indices))
    return [[sorted(bins[micro * data_parallel + rank]) for micro in range(per_rank)] for rank in range(data_parallel)]


def _fill_bins(lengths: Sequence[int], bin_count: int, max_tokens: int) -> list[list[int]] | None:
    bins: list[list[int]] = [[] for _ in range(bin_count)]
    heap = [(0, index) for index in range(bin_count)]
    for sample in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        load, index = heapq.heappop(heap)
        if load + lengths[sample] > max_tokens:
            return None
        bins[index].append(sample)
        heapq.heappush(heap, (load + lengths[sample], index))
    return bins


def build_micro_batch(batch: Batch, indices: Sequence[int], *, device: torch.device, pad_multiple: int = 1) -> MicroBatch:
    """Packs the named samples; pads with a sequence of token 0 outside the mask to a multiple of `pad_multiple` positions.

    An empty `indices` gives a micro-batch of padding only (its loss and token count are 0).
    """
    samples = [held(batch.samples[index]) for index in indices]
    used = sum(sample.length for sample in samples)
    padding = -used % pad_multiple if used else pad_multiple
    borders = list(itertools.accumulate([sample.length for sample in samples] + [padding] * bool(padding), initial=0))
    columns = _Columns(borders[-1])
    for index, sample, start in zip(indices, samples, borders, strict=False):
        columns.fill(start, sample, batch.offsets[index])
    if padding:
        columns.positions[used:] = np.arange(padding)

    def moved(array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(device)

    response_index_T = moved(columns.response_index)
    mask_T = response_index_T >= 0
    return MicroBatch(
        tokens_1T=moved(columns.tokens)[None],
        positions_1T=moved(columns.positions)[None],
        targets_T=moved(columns.targets),
        mask_T=mask_T,
        cu_seqlens=torch.tensor(borders, dtype=torch.int32, device=device),
        max_seqlen=max(stop - start for start, stop in itertools.pairwise(borders)),
        advantages_T=moved(columns.advantages),
        sampler_log_probs_T=moved(columns.sampler),
        old_log_probs_T=_gather(batch.old_log_probs_N, response_index_T, mask_T),
        selected_T=_gather(batch.selected_N, response_index_T, mask_T),
        response_index_T=response_index_T,
    )


class _Columns:
    """The values of a micro-batch's T positions while it is packed: those of padding outside the mask, except positions."""

    def __init__(self, length: int) -> None:
        self.tokens, self.positions, self.targets = (np.zeros(length, dtype=np.int64) for _ in range(3))
        self.response_index = np.full(length, -1, dtype=np.int64)
        self.advantages, self.sampler = (np.zeros(length, dtype=np.float32) for _ in range(2))

    def fill(self, start: int, sample: Sample, offset: int) -> None:
        """Writes a sample to the positions from `start` on; its response begins at `offset` of the batch's response tokens."""
        prompt, stop = len(sample.prompt_ids), start + sample.length
        first = start + prompt - 1  # where the first response token is the target
        self.tokens[start : start + prompt] = sample.prompt_ids
        self.tokens[start + prompt : stop] = sample.response_ids[:-1]
        self.targets[start:first] = sample.prompt_ids[1:]
        self.targets[first:stop] = sample.response_ids
        self.positions[start:stop] = np.arange(sample.length)
        self.response_index[first:stop] = np.arange(offset, offset + sample.response_length)
        self.advantages[first:stop] = sample.advantage
        self.sampler[first:stop] = sample.sampler_log_probs


def _gather(values_N: Tensor | None, response_index_T: Tensor, mask_T: Tensor) -> Tensor | None:
    """The batch's per-token values at a micro-batch's positions, 0 outside the mask."""
    if values_N is None:
        return None
    values_T = values_N.to(response_index_T.device)[response_index_T.clamp(min=0)]
    return torch.where(mask_T, values_T, torch.zeros_like(values_T))
