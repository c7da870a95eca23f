"""Numbers that planning repeats, because their homes import torch, are the same in both places."""

from megatron_entropic.entropy import sequence_chunks
from megatron_entropic.planning import communication, lm_head, training_memory
from megatron_entropic.policy import objective
from megatron_entropic.rollout.weight_sync import transports


def test_repeated_numbers() -> None:
    assert lm_head.CHUNK_TOKENS == sequence_chunks.CHUNK_TOKENS
    assert transports.NCCLTransport.bucket_bytes == training_memory.BUCKET_BYTES
    assert 8 * (len(objective.CONTROL_SUMS) + 1) == communication.CONTROL_BYTES
    assert 8 * (len(objective.SUMS) + len(objective.MAXIMA)) == communication.STATISTICS_BYTES
