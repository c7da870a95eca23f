"""From samples to packed micro-batches: which rank trains what, and the tensors of one forward pass.

Every rank holds the whole batch as plain numbers and plans it by the same deterministic rule, so counts are global
without a collective and no rank needs to be told its share.

Shapes: T packed positions of a micro-batch, S sequences in it, N response tokens of the whole batch.
"""

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One rollout as the loss sees it. `sampler_log_probs[i]` belongs to `response_ids[i]`."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    sampler_log_probs: Sequence[float]
    advantage: float

    @property
    def length(self) -> int:
        """Positions of the forward pass: the last token is predicted but never fed."""
        return len(self.prompt_ids) + len(self.response_ids) - 1


@dataclass
class Batch:
    """All samples of one step, the same on every rank.

    `old_log_probs_N` (set by Policy.prepare when there are several updates per step, or stale rollouts) holds the log-probs of all
    response tokens, sample after sample, under the policy before the first update; `old_version` counts the updates it had.
    `selected_N` (bool, set by Policy.update for one mini-batch): the tokens that Clip-Cov or KL-Cov act on.
    """

    samples: list[Sample]
    old_log_probs_N: Tensor | None = None
    old_version: int | None = None
    selected_N: Tensor | None = None
    offsets: list[int] = field(init=False)

    def __post_init__(self) -> None:
        for index, sample in enumerate(self.samples):
            if not sample.prompt_ids or not sample.response_ids:
                raise ValueError(f"sample {index} has an empty prompt or response; both need at least one token")
            if len(sample.response_ids) != len(sample.sampler_log_probs):
                raise ValueError(
                    f"sample {index} has {len(sample.response_ids)} response tokens but {len(sample.sampler_log_probs)} log-probs"
                )
        self.offsets = [0]
        for sample in self.samples:
            self.offsets.append(self.offsets[-1] + len(sample.response_ids))

    @property
    def response_tokens(self) -> int:
        return self.offsets[-1]

    def mini_batches(self, count: int) -> list["Batch"]:
        """`count` batches of consecutive samples (whole groups: config.py checks the division), with their old log-probs."""
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

    tokens_1T, positions_1T: inputs; targets_T: the next token; mask_T: the target is a response token; cu_seqlens: [S + 1]
    int32 borders of the packed sequences; advantages_T, sampler_log_probs_T, old_log_probs_T, selected_T: 0 outside the mask;
    response_index_T: place of the target in the batch's flat response tokens, -1 outside the mask.
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
    """Which samples each data-parallel rank packs into each of its micro-batches: plan[rank][micro_batch] -> sample indices.

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
    while (bins := _pack(lengths, data_parallel * per_rank, max_tokens)) is None:
        per_rank += 1
    bins.sort(key=lambda indices: -sum(lengths[i] for i in indices))
    return [[sorted(bins[micro * data_parallel + rank]) for micro in range(per_rank)] for rank in range(data_parallel)]


def _pack(lengths: Sequence[int], bin_count: int, max_tokens: int) -> list[list[int]] | None:
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
    tokens: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    response_index: list[int] = []
    advantages: list[float] = []
    sampler: list[float] = []
    borders = [0]
    for index in indices:
        sample = batch.samples[index]
        ids = [*sample.prompt_ids, *sample.response_ids]
        before, response = len(sample.prompt_ids) - 1, len(sample.response_ids)
        tokens += ids[:-1]
        targets += ids[1:]
        positions += range(sample.length)
        response_index += [-1] * before + list(range(batch.offsets[index], batch.offsets[index + 1]))
        advantages += [0.0] * before + [sample.advantage] * response
        sampler += [0.0] * before + list(sample.sampler_log_probs)
        borders.append(borders[-1] + sample.length)
    padding = -len(tokens) % pad_multiple if tokens else pad_multiple
    if padding:
        for column in (tokens, targets):
            column += [0] * padding
        positions += range(padding)
        response_index += [-1] * padding
        for values in (advantages, sampler):
            values += [0.0] * padding
        borders.append(borders[-1] + padding)
    response_index_T = torch.tensor(response_index, dtype=torch.int64, device=device)
    mask_T = response_index_T >= 0
    return MicroBatch(
        tokens_1T=torch.tensor([tokens], dtype=torch.int64, device=device),
        positions_1T=torch.tensor([positions], dtype=torch.int64, device=device),
        targets_T=torch.tensor(targets, dtype=torch.int64, device=device),
        mask_T=mask_T,
        cu_seqlens=torch.tensor(borders, dtype=torch.int32, device=device),
        max_seqlen=max(stop - start for start, stop in itertools.pairwise(borders)),
        advantages_T=torch.tensor(advantages, dtype=torch.float32, device=device),
        sampler_log_probs_T=torch.tensor(sampler, dtype=torch.float32, device=device),
        old_log_probs_T=_gather(batch.old_log_probs_N, response_index_T, mask_T),
        selected_T=_gather(batch.selected_N, response_index_T, mask_T),
        response_index_T=response_index_T,
    )


def _gather(values_N: Tensor | None, response_index_T: Tensor, mask_T: Tensor) -> Tensor | None:
    """The batch's per-token values in a micro-batch's places, 0 outside the mask."""
    if values_N is None:
        return None
    values_T = values_N.to(response_index_T.device)[response_index_T.clamp(min=0)]
    return torch.where(mask_T, values_T, torch.zeros_like(values_T))
