"""A step's samples, from rank 0 to the ranks that train on them: raw buffers, each to those that need it only.

All ranks of one data-parallel index (tensor and pipeline ranks) train on the same samples. Their shard goes from rank 0 to the
first of them, from there over its tensor ranks, and from the first pipeline stage to the others.

Shapes: B samples of the step; M int32 words of a shard: prompt ids, response ids and log-probs (their bits), sample after sample.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_entropic.config import BatchConfig, ControlConfig
from megatron_entropic.control.kinds import kind_of
from megatron_entropic.distributed.parallel import Parallel
from megatron_entropic.policy.batching import Batch, Sample, SampleElsewhere, held, plan_micro_batches
from megatron_entropic.policy.response import response_samples

_Words = npt.NDArray[np.int32]


def deal(control: ControlConfig, batch: BatchConfig, parallel: Parallel, samples: Sequence[Sample]) -> Batch:
    """The batch of rank 0's `samples`; other ranks give none, and hold the tokens of those that they train on.

    Which those are follows from the plans of the whole batch and of its mini-batches; for Clip-Cov, which compares all tokens, it
    is every sample. Collectives: two broadcasts over the world of 12 bytes a sample, then one message from rank 0 to each other
    data rank and broadcasts over the tensor and pipeline ranks, of 8 bytes a response token and 4 a prompt token.
    """
    if parallel.world_size == 1:
        return Batch(samples)
    outlines = _share_outlines(parallel, samples)
    needed = samples_needed(control, batch, outlines, parallel.dp_size)
    words: _Words | None = None
    for dp_rank in range(parallel.dp_size):
        shard = _to_words([held(samples[index]) for index in needed[dp_rank]]) if parallel.rank == 0 else None
        if parallel.dp_rank == dp_rank or parallel.rank == 0:
            size = sum(_words_of(outlines[index]) for index in needed[dp_rank])
            arrived = _move(parallel, dp_rank, shard, size)
            words = arrived if parallel.dp_rank == dp_rank else words
    if parallel.rank == 0:
        return Batch(samples)
    assert words is not None
    return Batch(_from_words(outlines, needed[parallel.dp_rank], words))


def samples_needed(
    control: ControlConfig, batch: BatchConfig, samples: Sequence[Sample | SampleElsewhere], data_parallel: int
) -> list[list[int]]:
    """Samples that each data-parallel rank trains on or measures in a step, ascending. Deterministic; only lengths matter."""
    selection = kind_of(control).selection
    if selection is not None and selection.needs_every_token:
        return [list(range(len(samples)))] * data_parallel
    needed: list[set[int]] = [set() for _ in range(data_parallel)]
    size = len(samples) // batch.mini_batches
    mini_batches = [range(start, start + size) for start in range(0, len(samples), size)]
    measured_again = [[part[index] for index in response_samples(control, size)] for part in mini_batches]
    for passed in ([range(len(samples))] if batch.mini_batches > 1 else []) + mini_batches + measured_again:
        lengths = [samples[index].length for index in passed]
        plan = plan_micro_batches(lengths, data_parallel=data_parallel, max_tokens=batch.max_tokens_per_micro_batch)
        for dp_rank, micro_batches in enumerate(plan):
            needed[dp_rank].update(passed[index] for indices in micro_batches for index in indices)
    return [sorted(indices) for indices in needed]


def _share_outlines(parallel: Parallel, samples: Sequence[Sample]) -> list[SampleElsewhere]:
    """Lengths and advantages of rank 0's samples, on every rank."""
    count = torch.tensor([len(samples)], device=parallel.device)
    dist.broadcast(count, src=0)
    columns_3B = torch.empty((3, int(count)), dtype=torch.int32, device=parallel.device)
    if parallel.rank == 0:
        columns_3B[0] = torch.tensor([len(sample.prompt_ids) for sample in samples])
        columns_3B[1] = torch.tensor([sample.response_length for sample in samples])
        columns_3B[2] = torch.tensor([sample.advantage for sample in samples], dtype=torch.float32).view(torch.int32)
    dist.broadcast(columns_3B, src=0)
    columns_3B = columns_3B.cpu()
    advantages_B = columns_3B[2].view(torch.float32).tolist()
    return [SampleElsewhere(*sample) for sample in zip(columns_3B[0].tolist(), columns_3B[1].tolist(), advantages_B, strict=True)]


def _words_of(sample: SampleElsewhere) -> int:
    return sample.prompt_length + 2 * sample.response_length


def _to_words(samples: Sequence[Sample]) -> _Words:
    """[M] of a shard."""
    words = np.empty(sum(len(sample.prompt_ids) + 2 * sample.response_length for sample in samples), dtype=np.int32)
    at = 0
    for sample in samples:
        log_probs = np.asarray(sample.sampler_log_probs, dtype=np.float32).view(np.int32)
        for part in (sample.prompt_ids, sample.response_ids, log_probs):
            words[at : at + len(part)] = part
            at += len(part)
    return words


def _from_words(outlines: Sequence[SampleElsewhere], indices: Sequence[int], words_M: _Words) -> list[Sample | SampleElsewhere]:
    """The whole step's samples; those of `indices` are views of `words_M`."""
    samples: list[Sample | SampleElsewhere] = list(outlines)
    at = 0
    for index in indices:
        outline = outlines[index]
        ends = np.cumsum([at + outline.prompt_length, outline.response_length, outline.response_length])
        prompt, response, log_probs = words_M[at : ends[0]], words_M[ends[0] : ends[1]], words_M[ends[1] : ends[2]]
        samples[index] = Sample(prompt, response, log_probs.view(np.float32), outline.advantage)
        at = int(ends[2])
    return samples


def _move(parallel: Parallel, dp_rank: int, share_M: _Words | None, size: int) -> _Words | None:
    """Brings one shard from rank 0, which gives it, to the ranks with that data-parallel index; they get it back."""
    if not size:
        return np.empty(0, dtype=np.int32)
    here = parallel.dp_rank == dp_rank
    whole: Tensor = torch.empty(size, dtype=torch.int32, device=parallel.device) if share_M is None else torch.from_numpy(share_M)
    whole = whole.to(parallel.device)
    if dp_rank and parallel.rank == 0:
        dist.send(whole, dst=dist.get_global_rank(parallel.dp_group, dp_rank))
    elif dp_rank and here and parallel.tp_rank == 0 and parallel.is_first_stage:
        dist.recv(whole, src=0)
    if not here:
        return None
    if parallel.is_first_stage and parallel.tp_size > 1:
        dist.broadcast(whole, src=dist.get_global_rank(parallel.tp_group, 0), group=parallel.tp_group)
    if parallel.pp_size > 1:
        dist.broadcast(whole, src=dist.get_global_rank(parallel.pp_group, 0), group=parallel.pp_group)
    return whole.cpu().numpy()
